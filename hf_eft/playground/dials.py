"""Sliders for a recipe: which numbers of it a person may turn, and the coefficients that they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..recipe.combination import BASE, REFERENCE, TUNED, Combination

_HIGHEST = 2.0  # of a slider, unless the recipe is beyond
_STRENGTH, _AMPLIFICATION, _WEIGHTS, _ALIGNMENT, _COEFFICIENTS = (
    "strength \N{GREEK SMALL LETTER ALPHA}",
    "amplification \N{GREEK SMALL LETTER BETA}",
    "weights \N{GREEK SMALL LETTER LAMDA}",
    "alignment \N{GREEK SMALL LETTER LAMDA}",
    "coefficients",
)


@dataclass(frozen=True)
class Dial:
    """A slider: its label, where it starts, and its ends."""

    label: str
    start: float
    low: float
    high: float

    @classmethod
    def at(cls, label: str, start: float) -> Dial:
        """A slider that has its start within its ends. It does not offer to turn a weight around, unless the recipe does."""
        return cls(label, start, min(0.0, math.floor(start)), max(_HIGHEST, math.ceil(start)))


@dataclass(frozen=True)
class Dials:
    r"""
    The sliders of one way to write a recipe.

    Args:
        label (`str`): What they turn.
        dials (`tuple[Dial, ...]`): The sliders.
        make (`Callable`): The recipe of their values, in this order.
    """

    label: str
    dials: tuple[Dial, ...]
    make: Callable[..., Combination]

    def coefficients(self, values: tuple[float, ...]) -> Mapping[str, float]:
        """The coefficients that values of the sliders stand for, by member."""
        recipe = self.make(*values)
        return {name: recipe.coefficient(name) for name in recipe.coefficients}


def dials_of(names: tuple[str, ...], combination: Combination) -> list[Dials]:
    r"""
    The ways to turn a recipe, that which it is written in first.

    Args:
        names (`tuple[str, ...]`): The members.
        combination ([`Combination`]): The recipe that the sliders start at. Of a schedule, its first values.

    Returns:
        `list[Dials]`: Strength and amplification of emulated fine-tuning, a weight for each of several tuned members, the alignment of
        DeRa, where the members are those; otherwise, or where the recipe is none of these, the coefficients themselves.
    """
    if any(isinstance(value, Mapping) for value in combination.coefficients.values()):
        raise ValueError(
            f"The sliders turn one strength for a whole text, and {combination} has one for each phase. Give numbers."
        )
    if combination.rules:
        raise ValueError(
            f"The sliders turn numbers, and {combination} has a rule for {', '.join(combination.ruled)}. Give numbers."
        )
    now = dict(zip(names, combination.at([0], names)[0].tolist(), strict=True))
    tuned = [name for name in names if name not in (BASE, REFERENCE)]
    ways: list[Dials] = []
    if names == (BASE, TUNED, REFERENCE):
        ways.append(
            Dials(_STRENGTH, (Dial.at("\N{GREEK SMALL LETTER ALPHA}", now[TUNED]),), lambda a: Combination.emulate(alpha=a))
        )
        ways.append(
            Dials(_AMPLIFICATION, (Dial.at("\N{GREEK SMALL LETTER BETA}", now[BASE]),), lambda b: Combination.emulate(beta=b))
        )
    elif BASE in names and REFERENCE in names and tuned:
        dials = tuple(Dial.at(f"\N{GREEK SMALL LETTER LAMDA} of {name}", now[name]) for name in tuned)
        ways.append(Dials(_WEIGHTS, dials, lambda *weights: Combination.steer(dict(zip(tuned, weights, strict=True)))))
    elif names == (TUNED, REFERENCE):
        ways.append(Dials(_ALIGNMENT, (Dial.at("\N{GREEK SMALL LETTER LAMDA}", now[TUNED]),), Combination.interpolate))
    ways.sort(key=lambda way: not _is_now(way, now))
    if not ways or not _is_now(ways[0], now):
        dials = tuple(Dial.at(name, now[name]) for name in names)
        ways.insert(0, Dials(_COEFFICIENTS, dials, lambda *values: Combination(dict(zip(names, values, strict=True)))))
    return ways


def _is_now(way: Dials, now: Mapping[str, float]) -> bool:
    made = way.coefficients(tuple(dial.start for dial in way.dials))
    return all(math.isclose(made.get(name, 0.0), value, abs_tol=1e-6) for name, value in now.items())
