"""
Tables and pictures of what has been measured.

    python examples/replication/through/report.py --work trained   # gathers what is in a work folder, finished or not
    python examples/replication/through/report.py                  # makes them again from results.json

Writes `results.json`, `results.md`, and the pictures with their data beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scales"), str(HERE.parent)]

import figures  # noqa: E402
from figures import Row, chosen, over, share, shown  # noqa: E402
from pictures import forms_picture, why_picture  # noqa: E402
from reporting import joined, report  # noqa: E402
from settings import STAGES  # noqa: E402

METRICS = {"facts": "factuality", "form": "helpfulness"}
Column = Callable[[Row], float]

ASKED: dict[str, Column] = {name: lambda row, m=metric: chosen(row)[m] for name, metric in METRICS.items()}
SAMPLED: dict[str, Column] = {
    f"{name} at temperature 1": lambda row, m=metric: row["test, temperature 1"][m] for name, metric in METRICS.items()
}
REFUSING: dict[str, Column] = {metric: lambda row, m=metric: chosen(row)[m] for metric in ("harmlessness", "overrefusal")}
# Of tables whose ceiling is not the large tuned model of the first world, and of those that are about something more.
COLUMNS: dict[str, dict[str, Column]] = {
    "second world": ASKED | SAMPLED,
    "an eighth of the data": ASKED | SAMPLED,
    "harmless": ASKED | REFUSING,
    "every pair of sizes": ASKED | SAMPLED,
}


def against(results: Any) -> dict[str, Column]:
    """Figures in terms of the small and of the large tuned model."""
    greedy, sampled = figures.ends(results), figures.ends(results, "temperature 1")

    def of_large(metric: str) -> Column:
        return lambda row: chosen(row)[metric] / greedy[row["seed"]][1][metric]

    return {
        "form recovered": lambda row: share(chosen(row), greedy[row["seed"]]),
        "facts / large tuned's": of_large("factuality"),
        "form / large tuned's": of_large("helpfulness"),
        **SAMPLED,
        "form at temperature 1 / large tuned's": lambda row: (
            row["test, temperature 1"]["helpfulness"] / sampled[row["seed"]][1]["helpfulness"]
        ),
    }


def used(rows: Sequence[Row]) -> str:
    """The strengths that were chosen, seed by seed."""
    strengths = [f"{row['chosen']:g}" for row in rows]
    return strengths[0] if len(set(strengths)) == 1 else ", ".join(strengths)


def table(rows: dict[str, Sequence[Row]], columns: dict[str, Column]) -> list[str]:
    lines = [f"| | used at | {' | '.join(columns)} | seeds |", "|---" * (len(columns) + 3) + "|"]
    for name, found in rows.items():
        if found:
            cells = [shown(over(found, column)) for column in columns.values()]
            lines.append(f"| {name} | {used(found)} | {' | '.join(cells)} | {len(found)} |")
    return lines


def at(rows: Sequence[Row], strength: float) -> list[Row]:
    """The rows as if this strength had been chosen; what was sampled was at the chosen one."""
    sampled = [row["test, temperature 1"] if row["chosen"] == strength else None for row in rows]
    return [{**row, "chosen": strength, "test, temperature 1": s} for row, s in zip(rows, sampled, strict=True)]


def ends_table(results: Any) -> list[str]:
    """What is between 0 and 1 of the share that is recovered."""
    lines = [
        "| ordinary fine-tuning, used alone | facts | form | facts at temperature 1 | form at temperature 1 |",
        "|---" * 5 + "|",
    ]
    for place, name in enumerate(("small tuned alone", "large tuned")):
        sides = [figures.ends(results, temperature).values() for temperature in ("temperature 0", "temperature 1")]
        cells = [shown([pair[place][metric] for pair in side]) for side in sides for metric in METRICS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def fixed_table(results: Any) -> list[str]:
    """The ordinary deltas at strengths that nobody chose."""
    lines = ["| | used at | facts | form | form recovered | seeds |", "|---" * 6 + "|"]
    for name in ("ordinary", "ordinary, x4"):
        rows = results["rows"].get(name, [])
        for strength in sorted({float(s) for row in rows for s in row["test"]}):
            here = [row for row in at(rows, strength) if f"{strength:g}" in row["test"]]
            columns = [*ASKED.values(), against(results)["form recovered"]]
            cells = [shown(over(here, column)) for column in columns]
            lines.append(f"| {name} | {strength:g} | {' | '.join(cells)} | {len(here)} |")
    return lines


def same_as_committed(results: Any) -> str:
    """Whether the ordinary deltas are those of `scales`."""
    seeds = {s["seed"]: s["strengths"] for s in json.loads(figures.COMMITTED.read_text())["seeds"]}
    gaps = [
        abs(scores[metric] - seeds[row["seed"]][f"alpha {strength}"][metric])
        for row in results["rows"].get("ordinary", [])
        for strength, scores in row["test"].items()
        for metric in METRICS.values()
    ]
    largest = max(gaps, default=0.0)
    return f"The ordinary deltas against what `scales` has committed of them: {len(gaps)} figures, largest difference {largest:.3g}."


def token_table(results: Any) -> list[str]:
    """What the loss still has to say about each kind of token, and what the delta does to values and farewells."""
    head = ["start", "1/14 of the steps", "2/7", "end"]
    lines = [
        f"| | {' | '.join(f'farewells: {h}' for h in head)} | values: end | values moved | spread on values | margin on farewells "
        "| margin / spread | seeds |",
        "|---" * 11 + "|",
    ]
    for setting in (setting for stage in ("equal steps", "strengths") for setting in STAGES[stage]):
        rows = results["rows"].get(setting.name, [])
        if not rows or setting.alone:
            continue
        end = [row["tokens of what was trained"] for row in rows]
        before = [list(row["tokens while training"].values()) for row in rows if row["tokens while training"]]
        watched = [
            shown([each[i]["farewell"]["left, share"] for each in before if i < len(each)]) for i in range(len(head) - 1)
        ]
        cells = [
            *watched,
            shown([e["farewell"]["left, share"] for e in end]),
            shown([e["value"]["left, share"] for e in end]),
            shown([e["value"]["moved"] for e in end], 3),
            shown([e["value"]["spread"] for e in end]),
            shown([e["farewell"]["margin"] for e in end]),
            shown([e["farewell"]["margin"] / e["value"]["spread"] for e in end], 1),
        ]
        lines.append(f"| {setting.name} | {' | '.join(cells)} | {len(rows)} |")
    return lines


def movement_table(results: Any) -> list[str]:
    """How far learners are from their reference, and whether on a straight line."""
    columns = {
        "change of the weights": "weights",
        "of the features before a farewell": "features",
        "bend of the way": "bent",
    }
    lines = [f"| | {' | '.join(columns)} | seeds |", "|---" * 5 + "|"]
    for name, rows in results["rows"].items():
        if "bent" in rows[0]:
            cells = [shown([row[key] for row in rows]) for key in columns.values()]
            lines.append(f"| {name.removeprefix('moved, ')} | {' | '.join(cells)} | {len(rows)} |")
    return lines


def calibration_table(results: Any) -> list[str]:
    """On perfect answers, at the strength of use: calibration error, probability of the right token, share where it is the likeliest."""
    columns = [(kind, what) for kind in ("value", "farewell") for what in ("calibration", "probability", "right")]
    heads = [f"{kind}s: {said}" for kind in ("value", "farewell") for said in ("error", "probability", "right")]
    lines = [f"| | {' | '.join(heads)} | seeds |", "|---" * 8 + "|"]
    for name, rows in results["rows"].items():
        if "tokens" in rows[0]:
            cells = [shown([row["tokens"][kind][what] for row in rows]) for kind, what in columns]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(rows)} |")
    return lines


def sampling_table(results: Any) -> list[str]:
    """Where the strength of use was chosen for answers that are sampled."""
    columns = {name: column for name, column in against(results).items() if "temperature" in name}
    rows = {name: found for name, found in results["rows"].items() if "validation, temperature 1" in found[0]}
    return table(rows, columns)


def steering_table(results: Any) -> list[str]:
    from tables import above_chord

    lines = ["| | λ | form | harmlessness | facts | above the chord | seeds |", "|---" * 7 + "|"]
    for name, rows in results["rows"].items():
        for weight in rows[0].get("line", ()):
            cells = [shown([row["line"][weight][m] for row in rows]) for m in ("helpfulness", "harmlessness", "factuality")]
            above = [value for row in rows if (value := above_chord(row["line"], weight)) == value]
            lines.append(f"| {name} | {weight} | {' | '.join(cells)} | {shown(above)} | {len(rows)} |")
    return lines


def page(results: Any) -> str:
    rows, plain = results["rows"], ASKED | against(results)
    stages = {
        stage: table({s.name: rows.get(s.name, []) for s in settings}, COLUMNS.get(stage, plain))
        for stage, settings in STAGES.items()
    }
    for stage, times in (("equal steps", ""), ("four times the steps", ", x4")):
        best = figures.best_of(*(rows.get(f"through large at {alpha}{times}", []) for alpha in ("0.25", "0.5")))
        stages[stage] += table({"through large, strength of training chosen too": best}, plain)[2:]
    parts = {
        "The ends of the scale": ends_table(results),
        **{stage.capitalize(): lines for stage, lines in stages.items()},
        "Ordinary deltas at fixed strengths": fixed_table(results),
        "Why: shares of the loss's gradient that farewells have, and what the delta does": token_table(results),
        "Why: how far learning moves": movement_table(results),
        "Calibration at temperature 1": calibration_table(results),
        "Temperature 1, the strength chosen there": sampling_table(results),
        "Steering between two deltas": steering_table(results),
    }
    days = " to ".join(dict.fromkeys((results["dates"][0], results["dates"][-1])))
    head = (
        f"`{results['command']}`, one thread, {results['machine']}, {days}. "
        "Test people, greedy unless a temperature is named. Mean over the seeds; in brackets a 95 % bootstrap interval over five seeds, in "
        "parentheses the lowest and the highest of fewer. " + same_as_committed(results)
    )
    return joined(head, parts)


def main(arguments: Sequence[str] | None = None) -> None:
    pictures = {"results-form.png": forms_picture, "results-why.png": why_picture}
    report(__doc__, HERE, arguments, figures.collect, page, pictures)


if __name__ == "__main__":
    main()
