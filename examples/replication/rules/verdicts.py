"""What the test people's answers say: shares and differences with intervals, verdicts on rules, losses that are avoided."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asking import unpacked
from candidates import CONSTANT, PLAIN
from measuring import RECOMMENDED
from resampling import Found, Seeds, of_difference, of_means, of_share
from rows import ROWS
from sizes import SECONDS

from hf_eft.evaluation.intervals import Items
from hf_eft.evaluation.intervals import of_difference as of_items

MARGIN = 0.02  # facts are not lost if the interval of the difference is above minus this
SMALLEST = 0.1  # ends of a line that are nearer than this have no chord, and a gap that is smaller no shares
BOTH = "both"  # of one answer
Results = Mapping[str, Any]


def collect(work: Path) -> dict[str, Any]:
    """Everything in a work folder, in the order of the rows and of the seeds."""
    found: dict[str, Any] = {
        "command": "python examples/replication/rules/run.py",
        "machine": set(),
        "dates": set(),
        "seconds": {},
    }
    models = [path.parent for path in work.rglob("model.safetensors")]
    if models and all((model / SECONDS).exists() for model in models):
        found["seconds"]["training"] = round(sum(json.loads((model / SECONDS).read_text()) for model in models))
    for stage in ("validation", "test", "frontiers"):
        paths = sorted((work / stage).glob("*.json" if stage == "validation" else "seed-*/*.json"))
        of_stage: dict[str, Any] = {}
        for path in paths:
            one = json.loads(path.read_text())
            found["machine"].add(one.pop("machine"))
            found["dates"].add(one.pop("date"))
            found["seconds"][stage] = round(found["seconds"].get(stage, 0) + one.pop("seconds"))
            name = path.stem
            if stage == "validation":
                of_stage[name] = _rounded(one["validation"])
            else:
                of_stage.setdefault(name, []).append({k: v for k, v in one.items() if k not in ("row", "delta", "way")})
        order = [row.name for row in ROWS]
        found[stage] = {n: of_stage[n] for n in sorted(of_stage, key=lambda n: (order.index(n) if n in order else 99, n))}
    if not found["test"]:
        raise SystemExit(f"There is nothing in {work / 'test'} yet: start `run.py --work {work}` first.")
    found["gates"] = {path.stem: json.loads(path.read_text()) for path in sorted((work / "gates").glob("*.json"))}
    return {
        **found,
        "machine": " / ".join(sorted(found["machine"])),
        "dates": sorted(found["dates"]),
        "chosen": json.loads((work / "chosen.json").read_text()),
    }


def _rounded(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    return float(f"{data:.4g}")


def seeds_of(rows: list[Any], family: str, metric: str, part: str | None = "test") -> Seeds:
    """For each seed what each question scored; `part` of what was asked, or the rows themselves. `BOTH` is facts and form at once."""
    found = [(row if part is None else row[part])[family] for row in rows]
    if metric != BOTH:
        return [unpacked(each[metric]) for each in found]
    pairs = [(unpacked(each["factuality"]), unpacked(each["helpfulness"])) for each in found]
    return [[fact * form for fact, form in zip(*pair, strict=True)] for pair in pairs]


def share(results: Results, row: str, family: str, metric: str, part: str = "test") -> Found:
    return of_share(seeds_of(results["test"][row], family, metric, part))


def difference(results: Results, row: str, first: str, second: str, metric: str, part: str = "test") -> Found:
    rows = results["test"][row]
    return of_difference(seeds_of(rows, first, metric, part), seeds_of(rows, second, metric, part))


def verdict(results: Results, row: str, family: str) -> dict[str, Any]:
    """
    Whether a rule is better in form than α = 1 *and* than the best constant, beyond chance, without losing facts against either: the whole
    interval of the difference in form above 0, and that in facts above `-MARGIN`.
    """
    found: dict[str, Any] = {}
    for other in (PLAIN, CONSTANT):
        found[other] = {m: difference(results, row, family, other, m) for m in ("helpfulness", "factuality", BOTH)}
    found["better"] = all(d["helpfulness"].better and d["factuality"].low > -MARGIN for d in (found[PLAIN], found[CONSTANT]))
    return found


def recovered(results: Results, family: str) -> Found | None:
    """
    The share of the form between the small and the large tuned model that the large base with a small ordinary delta has; `None` where
    there is no gap to share.
    """
    of_row, ceilings = results["test"]["ordinary, small on large"], results["test"]["ordinary, large on small"]

    def form(rows: list[Any], name: str) -> list[float]:
        return [sum(each) / len(each) for each in seeds_of(rows, name, "helpfulness")]

    floors, tops, values = form(of_row, "tuned alone"), form(ceilings, "tuned alone"), form(of_row, family)
    if any(abs(top - low) < SMALLEST for top, low in zip(tops, floors, strict=True)):
        return None
    return of_means([(v - low) / (top - low) for v, low, top in zip(values, floors, tops, strict=True)])


def losses(results: Results, family: str = RECOMMENDED) -> list[dict[str, Any]]:
    """
    Every pair of unlike scales, seed and metric: whether the check foresees with α = 1, on validation people, that the combination is
    worse than its tuned member alone; and what becomes of it on test people, with α = 1 and with the rule. Worse is a whole interval
    below 0.
    """
    found = []
    for name, rows in results["test"].items():
        for row in rows:
            if not row["validation"] or family not in row["validation"]:
                continue
            for metric in ("factuality", "helpfulness"):

                def compared(part: str, recipe: str, row: Any = row, metric: str = metric) -> Any:
                    return of_items(*(Items(unpacked(row[part][which][metric])) for which in (recipe, "tuned alone")))

                plain, ruled = compared("test", PLAIN), compared("test", family)
                found.append(
                    {
                        "row": name,
                        "seed": row["seed"],
                        "metric": metric,
                        "foreseen": compared("validation", PLAIN).high < 0,
                        "still foreseen": compared("validation", family).high < 0,
                        "lost": plain.high < 0,
                        "lost with the rule": ruled.high < 0,
                        "below with the rule": ruled.value < 0,
                    }
                )
    return found


def above_chord(line: Mapping[str, Mapping[str, float]], weight: str) -> float | None:
    """How far a point is above the chord between the ends of its line, in form where it refuses as much; `None` without a chord."""
    start, end, point = line["0"], line["1"], line[weight]
    span = start["harmlessness"] - end["harmlessness"]
    if abs(span) < SMALLEST:
        return None
    part = (point["harmlessness"] - end["harmlessness"]) / span
    return point["helpfulness"] - (part * start["helpfulness"] + (1 - part) * end["helpfulness"])


def over_lines(rows: list[Any], figure: Callable[[Any], float | None]) -> Found | None:
    """A figure of every seed's line, over the seeds that have it."""
    values = []
    for row in rows:
        scores = {
            weight: {metric: sum(unpacked(v)) / len(unpacked(v)) for metric, v in packed.items()}
            for weight, packed in row["line"].items()
        }
        if (value := figure(scores)) is not None:
            values.append(value)
    return of_means(values) if values else None
