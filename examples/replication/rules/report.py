"""
Tables and pictures of what has been measured.

    python examples/replication/rules/report.py --work trained   # gathers what is in a work folder, finished or not
    python examples/replication/rules/report.py                  # makes them again from results.json

Writes `results.json`, `results.md`, and the pictures with their data beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [
    str(HERE),
    *(str(HERE.parent / name) for name in ("through", "scales", ".")),
    str(HERE.parents[1] / "benchmarks"),
]

from candidates import CONSTANT, PLAIN  # noqa: E402
from drawing import families_picture, frontiers_picture  # noqa: E402
from frontier import LAMBDAS  # noqa: E402
from measuring import RECOMMENDED, RECOMMENDED_CONSTANT  # noqa: E402
from reporting import joined, report  # noqa: E402
from resampling import of_share  # noqa: E402
from rows import ROWS  # noqa: E402
from verdicts import (  # noqa: E402
    BOTH,
    MARGIN,
    above_chord,
    collect,
    difference,
    losses,
    over_lines,
    recovered,
    seeds_of,
    share,
    verdict,
)

ROW = {row.name: row for row in ROWS}
METRICS = {"facts": "factuality", "form": "helpfulness"}
TOGETHER = METRICS | {"both": BOTH}
REFUSING = {"refused": "harmlessness", "overrefusal": "overrefusal"}


def head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def option_of(results: Any, row: str, family: str) -> str:
    """What stands behind a family's name in a row."""
    if family in (RECOMMENDED, RECOMMENDED_CONSTANT):
        return results["chosen"][family]["option"]
    return results["test"][row][0]["options"].get(family, "")


def families_table(results: Any, row: str) -> list[str]:
    """Everything that was asked of a row's test people."""
    metrics = TOGETHER | (REFUSING if ROW[row].refuses else {})
    families = list(results["test"][row][0]["test"])
    against = [name for name in (PLAIN, CONSTANT) if name in families]
    lines = head("", "option", *metrics, *(f"{what} − {other}'s" for other in against for what in TOGETHER), "seeds")
    for family in families:
        cells = [share(results, row, family, metric).shown() for metric in metrics.values()]
        for other in against:
            for metric in TOGETHER.values():
                found = difference(results, row, family, other, metric)
                cells.append("" if family == other else _said(found))
        lines.append(f"| {family} | {option_of(results, row, family)} | {' | '.join(cells)} | {len(results['test'][row])} |")
    return lines


def _said(found: Any) -> str:
    """A difference, bold where it is beyond chance."""
    return f"**{found.shown(sign=True)}**" if found.low > 0 or found.high < 0 else found.shown(sign=True)


def verdicts_table(results: Any) -> list[str]:
    """Of each row the rule that its validation people chose, and the recommended one, against α = 1 and the best constant α."""
    lines = head(
        "", "rule", *(f"{what} − {other}'s" for other in (PLAIN, "best constant α") for what in ("form", "facts", "both")),
        "better than both", "seeds",
    )  # fmt: skip
    for row, rows in results["test"].items():
        if CONSTANT in rows[0]["test"]:
            for family in dict.fromkeys((rows[0]["rule"], RECOMMENDED)):
                if family in rows[0]["test"]:
                    found = verdict(results, row, family)
                    cells = [
                        found[o][m].shown(sign=True) for o in (PLAIN, CONSTANT) for m in ("helpfulness", "factuality", BOTH)
                    ]
                    name = option_of(results, row, family) + (" (recommended)" if family == RECOMMENDED else "")
                    lines.append(
                        f"| {row} | {name} | {' | '.join(cells)} | {'yes' if found['better'] else 'no'} | {len(rows)} |"
                    )
    return lines


def recovered_table(results: Any) -> list[str]:
    """Up-scaling small to large with ordinary deltas."""
    lines = head("", "option", "form recovered")
    for family in results["test"]["ordinary, small on large"][0]["test"]:
        if family not in ("base alone", "tuned alone") and (found := recovered(results, family)):
            lines.append(f"| {family} | {option_of(results, 'ordinary, small on large', family)} | {found.shown(sign=True)} |")
    return lines


def losses_table(results: Any) -> list[str]:
    """Losses by pair of scales and metric, with the recommended rule and with the constant that was chosen in the same way."""
    found, constant = losses(results), losses(results, RECOMMENDED_CONSTANT)
    of_constant = {(each["row"], each["seed"], each["metric"]): each for each in constant}
    lines = head(
        "pair", "metric", "cases", "lost with α = 1", "of these foreseen", "of the foreseen, lost with the rule",
        "with the constant", "losses that are new with the rule", "with the constant",
    )  # fmt: skip
    groups = list(dict.fromkeys((each["row"], each["metric"]) for each in found))
    for row, metric in [*groups, ("all", "")]:
        of_group = [each for each in found if row == "all" or (each["row"], each["metric"]) == (row, metric)]
        foreseen = [each for each in of_group if each["foreseen"] and each["lost"]]
        cells = (
            len(of_group), sum(each["lost"] for each in of_group), len(foreseen),
            *(sum(each["lost with the rule"] for each in some) for some in (foreseen, _same(foreseen, of_constant))),
            *(
                sum(each["lost with the rule"] and not each["lost"] for each in some)
                for some in (of_group, _same(of_group, of_constant))
            ),
        )  # fmt: skip
        lines.append(f"| {row.removeprefix('ordinary, ')} | {metric} | {' | '.join(map(str, cells))} |")
    return lines


def _same(cases: list[Any], of_other: dict[Any, Any]) -> list[Any]:
    """The same cases with another recipe."""
    return [of_other[key] for each in cases if (key := (each["row"], each["seed"], each["metric"])) in of_other]


def avoided(results: Any) -> tuple[int, int]:
    """Of the losses that the check foresees with α = 1, how many are none with the recommended rule, and how many there are."""
    foreseen = [each for each in losses(results) if each["foreseen"] and each["lost"]]
    return sum(not each["lost with the rule"] for each in foreseen), len(foreseen)


def sampled_table(results: Any) -> list[str]:
    """Some recipes at temperature 1, and how far they are above the best greedy constant there."""
    lines = head("", "", "option", *METRICS, *(f"{what} − constant α's" for what in METRICS), "seeds")
    for row, rows in results["test"].items():
        for family in rows[0]["test, sampled"]:
            cells = [share(results, row, family, metric, "test, sampled").shown() for metric in METRICS.values()]
            for metric in METRICS.values():
                found = difference(results, row, family, CONSTANT, metric, "test, sampled")
                cells.append("" if family == CONSTANT else _said(found))
            lines.append(f"| {row} | {family} | {option_of(results, row, family)} | {' | '.join(cells)} | {len(rows)} |")
    return lines


def frontiers_table(results: Any) -> list[str]:
    lines = head("", "λ", "form", "refused", "overrefusal", "facts", "above the chord", "seeds")
    for name, rows in results["frontiers"].items():
        for weight in rows[0]["line"]:
            cells = [
                of_share(seeds_of([row["line"] for row in rows], weight, metric, part=None)).shown()
                for metric in ("helpfulness", "harmlessness", "overrefusal", "factuality")
            ]
            above = over_lines(rows, lambda line, weight=weight: above_chord(line, weight))
            cells.append(above.shown(sign=True) if above and float(weight) not in (LAMBDAS[0], LAMBDAS[-1]) else "")
            lines.append(f"| {name} | {weight} | {' | '.join(cells)} | {len(rows)} |")
    return lines


def gates_table(results: Any) -> list[str]:
    lines = head("gate", "weights", "answers", "tokens", "loss before", "loss after")
    for name, about in results["gates"].items():
        cells = (about["weights"], about["answers"], about["tokens"], about["loss"][0], about["loss"][-1])
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return lines


def validation_table(results: Any) -> list[str]:
    """What the choices were made by: the first seed's validation people."""
    lines = head("", "family", "option", *METRICS)
    for row, families in results["validation"].items():
        for family, found in families.items():
            for option, scores in found.items():
                said = (
                    f"**{option}**"
                    if results["chosen"]["rows"][row]["options"][family] == option and len(found) > 1
                    else option
                )
                lines.append(f"| {row} | {family} | {said} | {scores['factuality']:.2f} | {scores['helpfulness']:.2f} |")
    return lines


def page(results: Any) -> str:
    saved, foreseen = avoided(results)
    which = results["chosen"]["recommended"]
    parts = {
        "Is a rule better than α = 1 and than the best constant α?": verdicts_table(results),
        f"Losses, and what {which['option']} makes of them: {saved} of {foreseen} foreseen losses are none any more": losses_table(
            results
        ),
        "The share of the form that up-scaling recovers, ordinary deltas, small on large": recovered_table(results),
        **{f"{ROW[row].group.capitalize()}: {row}": families_table(results, row) for row in results["test"]},
        "At temperature 1": sampled_table(results),
        "Steering from harmless (λ = 0) to helpful": frontiers_table(results),
        "Gates": gates_table(results),
        "What the validation people of the first seed said": validation_table(results),
    }
    days = " to ".join(dict.fromkeys((results["dates"][0], results["dates"][-1])))
    times = ", ".join(f"{stage} {seconds / 60:.0f} min" for stage, seconds in results["seconds"].items())
    without = "" if "training" in results["seconds"] else ", without the training"
    head_ = (
        f"`{results['command']}`, one thread, {results['machine']}, {days}; {times} of processor time{without}. Test "
        "people, greedy unless a temperature is named. In brackets 95 % intervals of a paired bootstrap over seeds and over the questions "
        "of each; a difference whose interval leaves out 0 is bold. *Better than both*: more form beyond chance than both, and facts "
        f"above −{MARGIN:g}. *Both* is the share of answers with the right fact in the right form; it was added when results were known."
    )
    return joined(head_, parts)


def main(arguments: Sequence[str] | None = None) -> None:
    pictures = {"results-families.png": families_picture, "results-frontiers.png": frontiers_picture}
    report(__doc__, HERE, arguments, collect, page, pictures)


if __name__ == "__main__":
    main()
