"""A coefficient: a number, or what it is at each position, or what it is in each phase of a text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# A number; or what it is at each position: a value for each (the last one holds on), or a function of it; or a number for each phase.
Coefficient = float | Sequence[float] | Callable[[int], float] | Mapping[str, float]


class ByPhase(Mapping[str, float]):
    """A number for each phase, by its name. Immutable."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = dict(values)

    def __getitem__(self, phase: str) -> float:
        return self._values[phase]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


def checked(name: str, value: Any) -> Any:
    """A float, a tuple of them, a callable, or a [`ByPhase`]."""
    if callable(value):
        return value
    if isinstance(value, Mapping) and value:
        return ByPhase({phase: number(name, each) for phase, each in value.items()})
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return tuple(number(name, each) for each in value)
    return number(name, value)


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
    """What a coefficient is at a position, and in a phase."""
    if callable(value):
        return number(name, value(position))
    if isinstance(value, ByPhase):
        return value[phase]
    return value[min(position, len(value) - 1)] if isinstance(value, tuple) else value


def mapped(value: Any, change: Callable[[float], float]) -> Any:
    """The same change to a number, to every value of a sequence or of a mapping, or to what a callable will say."""
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
    """The sum of numbers, some of which may be by phase."""
    phased = [value for value in values if isinstance(value, Mapping)]
    if not phased:
        return sum(values, 0.0)
    names = dict.fromkeys(phase for value in phased for phase in value)
    if any(set(value) != set(names) for value in phased):
        raise ValueError(f"Weights by phase must name the same phases, got {[list(value) for value in phased]}.")
    return {phase: sum(value[phase] if isinstance(value, Mapping) else value for value in values) for phase in names}


def shown(value: Any) -> str:
    """A coefficient as it stands in a formula, a number without its sign."""
    if callable(value):
        return f"{getattr(value, '__name__', type(value).__name__)}(t)".replace("<lambda>", "f")
    if isinstance(value, Mapping):
        return f"({', '.join(f'{phase}: {each:g}' for phase, each in value.items())})"
    return f"({', '.join(f'{each:g}' for each in value)})" if isinstance(value, tuple) else f"{abs(value):g}"
