"""A coefficient: a number, or what it is at each position, or in each phase of a text, or what a rule says."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .rules.rule import ByRule, Rule

# A number; or what it is at each position: a value for each (the last one holds on), or a function of it; or what a rule says; or a
# number or a rule for each phase.
Coefficient = float | Sequence[float] | Callable[[int], float] | Rule | ByRule | Mapping[str, float | Rule | ByRule]

# What tuned members are weighted with: no schedule, as weights are added up.
Weight = float | Rule | ByRule | Mapping[str, float | Rule | ByRule]


class ByPhase(Mapping[str, float | ByRule]):
    """A number or a rule for each phase, by its name. Immutable."""

    def __init__(self, values: Mapping[str, float | ByRule]) -> None:
        self._values = dict(values)

    def __getitem__(self, phase: str) -> float | ByRule:
        return self._values[phase]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)

    def __str__(self) -> str:
        return f"({', '.join(f'{phase}: {signed(each)}' for phase, each in self._values.items())})"


def checked(name: str, value: Any) -> Any:
    """A float, a tuple of them, a callable, a [`ByRule`], or a [`ByPhase`]."""
    if isinstance(value, (Rule, ByRule)):
        return number_or_rule(name, value)
    if callable(value):
        return value
    if isinstance(value, Mapping) and value:
        return ByPhase({phase: number_or_rule(name, each) for phase, each in value.items()})
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        if any(isinstance(each, (Rule, ByRule)) for each in value):
            raise ValueError(
                f"The coefficient of the member {name!r} is a schedule over positions, which holds numbers, got a rule in it. Give the "
                "rule alone, or by phase."
            )
        return tuple(number(name, each) for each in value)
    return number(name, value)


def number_or_rule(name: str, value: Any) -> float | ByRule:
    """A finite number, or what a rule says, of the member `name`."""
    if not isinstance(value, (Rule, ByRule)):
        return number(name, value)
    rules = ByRule.of(value)
    for each in (rules.offset, *(scale for _, scale in rules.terms)):
        number(name, each)
    return rules if rules.terms else rules.offset


def number(name: str, value: Any) -> float:
    """A finite number, of the member `name`."""
    given = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number that no float is
            given = float(value)
    if not math.isfinite(given):
        raise ValueError(f"The coefficient of the member {name!r} must be a finite number, got {value!r:.80}.")
    return given


def at(name: str, value: Any, position: int, phase: str) -> float:
    """What a coefficient is at a position, and in a phase; NaN where a rule says it."""
    if isinstance(value, ByPhase):
        value = value[phase]
    if isinstance(value, ByRule):
        return math.nan
    if callable(value):
        return number(name, value(position))
    return value[min(position, len(value) - 1)] if isinstance(value, tuple) else value


def no_number(name: str, value: Any) -> ValueError:
    """What is to be raised where the coefficient of the member `name` is asked for as one number."""
    kind = "a schedule: say for which positions, with `at`"
    if isinstance(value, ByPhase):
        kind = "by phase: say in which, with `at`"
    if isinstance(value, ByRule):
        kind = f"what the rule {value} says of a token, no number"
    return ValueError(f"The coefficient of the member {name!r} is {kind}.")


def rules_of(values: Mapping[str, Any]) -> tuple[tuple[str, ByRule], ...]:
    """What rules say, by member, of coefficients by member. Raises a `ValueError` if they say different things of one in its phases."""
    found: list[tuple[str, ByRule]] = []
    for name, value in values.items():
        parts = value.values() if isinstance(value, ByPhase) else [value]
        rules = list(dict.fromkeys(part for part in parts if isinstance(part, ByRule)))
        if len(rules) > 1:
            raise ValueError(
                f"The member {name!r} has different rules in different phases, got {' and '.join(map(str, rules))}: give it one rule, and "
                "numbers in other phases."
            )
        found += [(name, rule) for rule in rules]
    return tuple(found)


def drafting(value: Any) -> Any:
    """The coefficient with numbers in the place of its rules: for drafts that are made without all members."""
    if isinstance(value, ByPhase):
        return ByPhase({phase: drafting(each) for phase, each in value.items()})
    return value.drafting if isinstance(value, ByRule) else value


def mapped(value: Any, change: Callable[[float], float]) -> Any:
    """The same change to a number, to every value of a sequence or of a mapping, or to what a rule or a callable will say."""
    if isinstance(value, (Rule, ByRule)):
        return change(value)  # type: ignore[arg-type]
    if callable(value):
        return lambda position: change(value(position))
    if isinstance(value, Mapping):
        return {phase: mapped(each, change) for phase, each in value.items()}  # what is no number is refused later, by name
    return [change(each) for each in value] if isinstance(value, Sequence) else change(value)


def minus(value: Any) -> Any:
    """The coefficient with the other sign."""
    # not -value, whose negative zero would show in every message
    return mapped(value, lambda number: 0.0 - number)


def total(values: Sequence[Any]) -> Any:
    """The sum of numbers and rules, some of which may be by phase."""
    phased = [value for value in values if isinstance(value, Mapping)]
    if not phased:
        sums = sum(values, 0.0)
        return sums.offset if isinstance(sums, ByRule) and not sums.terms else sums
    names = dict.fromkeys(phase for value in phased for phase in value)
    if any(set(value) != set(names) for value in phased):
        raise ValueError(f"Weights by phase must name the same phases, got {[list(value) for value in phased]}.")
    return {phase: total([value[phase] if isinstance(value, Mapping) else value for value in values]) for phase in names}


def signed(value: float | ByRule) -> str:
    """A number or a rule as it stands in a formula, with its sign."""
    if isinstance(value, ByRule):
        return f"{'-' if value.is_negative else ''}{value}"
    return f"{value:g}"


def shown(value: Any) -> str:
    """A coefficient as it stands in a formula, a number and a rule without the sign."""
    if isinstance(value, (ByPhase, ByRule)):
        return str(value)
    if callable(value):
        return f"{getattr(value, '__name__', type(value).__name__)}(t)".replace("<lambda>", "f")
    return f"({', '.join(f'{each:g}' for each in value)})" if isinstance(value, tuple) else f"{abs(value):g}"
