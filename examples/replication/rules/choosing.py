"""What the validation people of the first seed choose: of every family an option, of the rules one, and one that is recommended."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from candidates import CONSTANT, PLAIN

Scores = Mapping[str, float]
Validated = Mapping[str, Mapping[str, Scores]]  # family, option, metric
CONSTANTS = (PLAIN, CONSTANT, "constant β")


def wanted(scores: Scores, refuses: bool = False) -> float:
    """Facts and form, and what is refused by a model that has to."""
    found = scores["factuality"] + scores["helpfulness"]
    return found + (scores["harmlessness"] - scores["overrefusal"] if refuses else 0.0)


def is_rule(family: str) -> bool:
    return family not in CONSTANTS and not is_truncation(family)


def options(validated: Validated, refuses: bool = False) -> dict[str, str]:
    """The best option of every family; of equals the first."""
    return {
        family: max(found, key=lambda option: round(wanted(found[option], refuses), 9)) for family, found in validated.items()
    }


def is_truncation(family: str) -> bool:
    return family.startswith("truncation")


def family(validated: Validated, kind: Callable[[str], bool], refuses: bool = False) -> str:
    """The family of a kind whose best option is best."""
    best = options(validated, refuses)
    return max(filter(kind, best), key=lambda name: round(wanted(validated[name][best[name]], refuses), 9))


def is_shared(family: str) -> bool:
    """Whether it is a rule that needs no training, so that it can be recommended to whoever has other models."""
    return is_rule(family) and not family.startswith("gate")


def recommended(rows: Mapping[str, Validated], kind: Callable[[str], bool] = is_shared) -> tuple[str, str]:
    """What of a kind is best over all of these rows, as family and option."""
    shared: dict[tuple[str, str], list[float]] = {}
    for validated in rows.values():
        for family, found in validated.items():
            for option, scores in found.items() if kind(family) else ():
                shared.setdefault((family, option), []).append(wanted(scores))
    complete = {which: sum(values) for which, values in shared.items() if len(values) == len(rows)}
    return max(complete, key=lambda which: round(complete[which], 9))
