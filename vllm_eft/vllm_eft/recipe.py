"""Which coefficients a request asks for, as numbers for each model. Pure: neither torch nor vLLM is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BASE, REFERENCE = "base", "reference"
RULES = ("keep", "drop", "base", "plausible")
# What a request may say of its recipe, one of them: `extra_args` of `SamplingParams`, over HTTP `vllm_xargs`.
ASKED = ("alpha", "beta", "weights", "coefficients")
LONGEST = 4096  # values of a schedule


@dataclass(frozen=True)
class Recipe:
    r"""
    A folder's recipe: its members, which of them share a model, their coefficients and the truncation.

    Args:
        names (`tuple[str, ...]`): The members, the main member first.
        shared (`Mapping[str, str]`): For a member that uses another's model, that member.
        coefficients (`Mapping[str, float or Sequence[float]]`): By member; a sequence is a schedule over the tokens that are generated.
        truncation (`Mapping[str, Any]`, *optional*): `rule` and `p`.

    Raises:
        `ValueError`: If a coefficient is no finite number, or the truncation is none of hf_eft's.
    """

    names: tuple[str, ...]
    shared: Mapping[str, str]
    coefficients: Mapping[str, Any]
    truncation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, value in self.coefficients.items():
            if name not in self.names:
                raise ValueError(f"The recipe names {name!r}, but the members are {', '.join(self.names)}.")
            _checked(f"The coefficient of {name!r}", value)
        if self.truncation:
            rule = self.truncation.get("rule")
            p: Any = self.truncation.get("p")
            if rule not in RULES or not _is_number(p) or not 0 < p <= 1:
                raise ValueError(
                    f"`truncation` must have a `rule` of {', '.join(RULES)} and a `p` in (0, 1], got {dict(self.truncation)!r:.200}."
                )
            _ = self.guide  # a rule without its member is refused when the folder is read

    @property
    def models(self) -> tuple[str, ...]:
        """The members with a model of their own, in order: a row of coefficients has one number for each."""
        return tuple(name for name in self.names if name not in self.shared)

    @property
    def tuned(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in (BASE, REFERENCE))

    @property
    def guide(self) -> str | None:
        """The model whose nucleus the truncation is of."""
        if not self.truncation:
            return None
        rule = self.truncation["rule"]
        if rule in ("base", "plausible"):
            if BASE not in self.names:
                raise ValueError(f"The truncation {rule!r} is of the base, which the members {', '.join(self.names)} have not.")
            name = BASE
        else:
            if len(self.tuned) != 1:
                raise ValueError(f"The truncation {rule!r} is of one tuned member, got {', '.join(self.tuned) or 'none'}.")
            name = self.tuned[0]
        return self.shared.get(name, name)

    def rows(self, coefficients: Mapping[str, Any] | None = None) -> list[list[float]]:
        r"""
        The coefficients of every generated token, the last row holding on: one row without a schedule.

        Args:
            coefficients (`Mapping[str, float or Sequence[float]]`, *optional*): By member, in place of the folder's.

        Returns:
            `list[list[float]]`: For each position a number for each of `models`; those of members that share a model are added up.
        """
        given = self.coefficients if coefficients is None else coefficients
        steps = max((len(value) for value in given.values() if not _is_number(value)), default=1)
        rows = []
        for step in range(steps):
            row = dict.fromkeys(self.models, 0.0)
            for name, value in given.items():
                row[self.shared.get(name, name)] += float(value if _is_number(value) else value[min(step, len(value) - 1)])
            rows.append(list(row.values()))
        return rows

    def asked(self, extra: Mapping[str, Any] | None) -> list[list[float]] | None:
        r"""
        What a request asks for, as `rows`; nothing if it says nothing.

        Raises:
            `ValueError`: If it says two things, or names what is not there, or gives what is no finite number.
        """
        said = [key for key in ASKED if (extra or {}).get(key) is not None]
        if not said:
            return None
        if len(said) > 1:
            raise ValueError(f"Give one of {', '.join(ASKED)}, not both {' and '.join(said)}.")
        value = (extra or {})[said[0]]
        found = self._of_shorthand(said[0], value) if said[0] in ("alpha", "beta") else self._of_many(said[0], value)
        rows = self.rows(found)
        if not any(any(row) for row in rows):
            raise ValueError(f"`{said[0]}` = {value!r:.80} leaves no member with a say: give one a coefficient other than 0.")
        return rows

    def _of_shorthand(self, key: str, value: Any) -> dict[str, Any]:
        _checked(f"`{key}`", value)
        if len(self.tuned) != 1 or set(self.names) != {BASE, self.tuned[0], REFERENCE}:
            raise ValueError(
                f"`{key}` is for a base, one tuned member and a reference, not for {', '.join(self.names)}: give `weights` "
                "or `coefficients`."
            )
        if key == "alpha":
            return {BASE: 1.0, self.tuned[0]: value, REFERENCE: _minus(value)}
        return {BASE: value, self.tuned[0]: 1.0, REFERENCE: _minus(value)}

    def _of_many(self, key: str, value: Any) -> dict[str, Any]:
        """`coefficients`, by name or in the order of the members; `weights` of tuned members, by name or in their order."""
        wanted = self.names if key == "coefficients" else self.tuned
        if not wanted:
            raise ValueError(f"`{key}` is for tuned members, and there are none among {', '.join(self.names)}.")
        if isinstance(value, (list, tuple)):
            if len(value) != len(wanted):
                raise ValueError(
                    f"`{key}` must have a number for each of {', '.join(wanted)}, got {len(value)}: {value!r:.80}."
                )
            value = dict(zip(wanted, value, strict=True))
        if not isinstance(value, Mapping) or (unknown := [name for name in value if name not in wanted]):
            named = f"names {', '.join(map(repr, unknown))}" if isinstance(value, Mapping) else f"is {value!r:.80}"
            raise ValueError(f"`{key}` must have numbers for {', '.join(wanted)}, by name or in that order; it {named}.")
        for name, number in value.items():
            _checked(f"`{key}` of {name!r}", number)
        if key == "coefficients":
            return dict(value)
        # As hf_eft's `recipe` has it: of each delta, against the reference where there is no base, of itself where there is neither.
        total = _summed([value.get(name, 0.0) for name in self.tuned])
        if BASE in self.names and REFERENCE in self.names:
            return {BASE: 1.0, **value, REFERENCE: _minus(total)}
        if REFERENCE in self.names:
            return {**value, REFERENCE: _plus_one(_minus(total))}
        return dict(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _checked(what: str, value: Any) -> None:
    """Raise unless it is a finite number, or a schedule of them."""
    schedule = isinstance(value, Sequence) and not isinstance(value, str) and 0 < len(value) <= LONGEST
    if not _is_number(value) and not (schedule and all(map(_is_number, value))):
        raise ValueError(f"{what} must be a finite number, or a list of at most {LONGEST} of them, got {value!r:.80}.")


def _minus(value: Any) -> Any:
    return [0.0 - each for each in value] if isinstance(value, Sequence) else 0.0 - value


def _plus_one(value: Any) -> Any:
    return [1.0 + each for each in value] if isinstance(value, Sequence) else 1.0 + value


def _summed(values: Sequence[Any]) -> Any:
    steps = max((len(value) for value in values if isinstance(value, Sequence)), default=0)
    if not steps:
        return float(sum(values))
    return [
        sum(value[min(step, len(value) - 1)] if isinstance(value, Sequence) else value for value in values)
        for step in range(steps)
    ]
