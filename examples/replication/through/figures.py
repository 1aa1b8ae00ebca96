"""What was measured, seed by seed, as figures with intervals over the seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from settings import CEILING, FLOOR, STAGES

from hf_eft.evaluation.intervals import Items, of_value

SEEDS = 5
COMMITTED = Path(__file__).resolve().parents[1] / "scales" / "results.json"
Row = dict[str, Any]


def collect(work: Path) -> dict[str, Any]:
    """Everything in a work folder, `rows` by the name of the setting, one entry for each seed that has been measured."""
    found = [json.loads(path.read_text()) for path in sorted((work / "measured").glob("seed-*/*.json"))]
    if not found:
        raise SystemExit(f"There is nothing in {work / 'measured'} yet: start `run.py --work {work}` first.")
    rows: dict[str, list[Row]] = {}
    for row in found:
        name = row["setting"]["name"] if "setting" in row else row["name"]
        rows.setdefault(name, []).append(_rounded({key: value for key, value in row.items() if key not in ("machine", "date")}))
    names = [setting.name for settings in STAGES.values() for setting in settings]
    order = {name: place for place, name in enumerate(names)}
    about = {
        "command": "python examples/replication/through/run.py",
        "machine": " / ".join(sorted({row["machine"] for row in found})),
        "dates": sorted({row["date"] for row in found}),
    }
    return {**about, "rows": {name: rows[name] for name in sorted(rows, key=lambda name: order.get(name, len(order)))}}


def _rounded(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    return float(f"{data:.4g}") if isinstance(data, float) else data


def ends(results: Any, temperature: str = "temperature 0") -> dict[int, tuple[Row, Row]]:
    """
    For each seed the scores of the small and of the large model, fine-tuned ordinarily and used alone: those that were measured beside the
    rest, or as long as they are not there those that `scales` has committed, of the same training on another processor.
    """
    seeds = json.loads(COMMITTED.read_text())["seeds"]
    found = {s["seed"]: tuple(s["matrix"][temperature][f"{size}/{size}"] for size in ("small", "large")) for s in seeds}
    for place, setting in enumerate((FLOOR, CEILING)):
        for row in results["rows"].get(setting.name, []):
            own = chosen(row) if temperature == "temperature 0" else row["test, temperature 1"]
            low, high = found[row["seed"]]
            found[row["seed"]] = (own, high) if place == 0 else (low, own)
    return found


def chosen(row: Row) -> Row:
    """The test people's scores at the strength that the validation people chose."""
    return row["test"][f"{row['chosen']:g}"]


def share(scores: Row, of: tuple[Row, Row], metric: str = "helpfulness") -> float:
    """The share of the gap that is recovered: 0 is the small tuned model of the seed, alone; 1 the large one."""
    low, high = (side[metric] for side in of)
    return (scores[metric] - low) / (high - low)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and a 95 % bootstrap interval over the seeds; where fewer than five were run, the lowest and the highest."""
    if len(values) < SEEDS:
        return statistics.mean(values), min(values), max(values)
    # Weighted, for seeds are not questions, even where every one of them says 1.0.
    found = of_value(Items(list(values), [1.0] * len(values)))
    return found.value, found.low, found.high


def shown(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return "-"
    mean, low, high = interval(values)
    figure = f"{mean:.{digits}f}"
    if len(values) == 1:
        return figure
    ends = f"{low:.{digits}f}, {high:.{digits}f}"
    return f"{figure} [{ends}]" if len(values) >= SEEDS else f"{figure} ({ends})"


def over(rows: Sequence[Row], figure: Callable[[Row], float]) -> list[float]:
    return [figure(row) for row in rows]


def best_of(*candidates: Sequence[Row]) -> list[Row]:
    """For each seed that all have, the candidate whose chosen strength is best on the validation people."""

    def wanted(row: Row) -> float:
        scores = row["validation"][f"{row['chosen']:g}"]
        return scores["factuality"] + scores["helpfulness"]

    by_seed = [{row["seed"]: row for row in rows} for rows in candidates]
    return [max((rows[seed] for rows in by_seed), key=wanted) for seed in by_seed[0] if all(seed in rows for rows in by_seed)]
