"""Recipes: which members are combined, with which coefficients, and which tokens may be re-weighted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch

Rule = Literal["keep", "drop", "base", "plausible"]
# A number, or what it is at each position: a value for each (the last one holds on), or a function of it.
Coefficient = float | Sequence[float] | Callable[[int], float]

BASE = "base"
TUNED = "tuned"
REFERENCE = "reference"


@dataclass(frozen=True)
class Truncation:
    r"""
    Which tokens the combination may re-weight: ratios of small probabilities are noisy and can lift unlikely tokens.

    Args:
        rule (`str`):
            Where the nucleus is taken and what becomes of a token outside it.

            - `"keep"`: nucleus of the tuned member; outside it a token keeps the tuned member's log-probability (our best
              reading of conservative re-weighting in the EFT paper, section 4).
            - `"drop"`: nucleus of the tuned member; outside it a token has probability 0.
            - `"base"`: nucleus of the base; outside it a token has probability 0 (the filter of DExperts).
            - `"plausible"`: a token that the base finds less likely than `p` times its most likely token has probability 0
              (the plausibility constraint of contrastive decoding).
        p (`float`):
            The nucleus' probability mass for the first three rules, the fraction of the maximum for `"plausible"`.
            `0 < p <= 1`.

    Raises:
        `ValueError`: If `rule` is unknown or `p` is out of range.
    """

    rule: Rule
    p: float

    def __str__(self) -> str:
        where = {"keep": "re-weighted", "drop": "only", "base": "only", "plausible": "only"}[self.rule]
        if self.rule == "plausible":
            return f"{where} where p_base >= {self.p:g} of its maximum"
        return f"{where} within the nucleus of {'base' if self.rule == 'base' else 'tuned'} of mass {self.p:g}"

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"`rule` must be one of {', '.join(get_args(Rule))}, got {self.rule!r}.")
        if not (isinstance(self.p, (int, float)) and 0 < self.p <= 1):
            raise ValueError(f"`p` of the truncation {self.rule!r} must be in (0, 1], got {self.p!r}.")


@dataclass(frozen=True)
class Combination:
    r"""
    The recipe: a coefficient for every member and, optionally, a truncation. Immutable.

    The combined distribution is `softmax(sum_k c_k log p_k)` (EFT paper, equation 4, for the coefficients 1, 1, -1).

    It prints as its formula. A coefficient may be a schedule over the tokens that are generated, 0 for the first: a sequence, whose last
    value holds on, or a callable.

    Args:
        coefficients (`Mapping[str, float or Sequence[float] or Callable[[int], float]]`):
            The coefficient of each member, by name. `"base"` and `"reference"` have the meaning of the paper; every other
            name is a tuned member. Missing members have the coefficient 0.
        truncation ([`Truncation`], *optional*):
            Which tokens may be re-weighted. Without it, all.

    Raises:
        `ValueError`: If a coefficient is not finite, all are zero, or the truncation needs a member that is not there.

    Example:

    ```python
    >>> from hf_eft import Combination

    >>> dict(Combination.emulate(alpha=0.5).coefficients)
    {'base': 1.0, 'tuned': 0.5, 'reference': -0.5}
    >>> print(Combination.emulate(beta=1.5))
    1.5 base + tuned - 1.5 reference
    >>> print(Combination.steer({"helpful": 0.7, "harmless": 0.3}))
    base + 0.7 helpful + 0.3 harmless - reference
    ```
    """

    coefficients: Mapping[str, Coefficient]
    truncation: Truncation | None = None
    _pairs: tuple[tuple[str, Any], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checked = {name: _checked(name, value) for name, value in self.coefficients.items()}
        if not any(checked.values()):
            raise ValueError(f"At least one coefficient must differ from 0, got {checked or 'no members'}.")
        object.__setattr__(self, "coefficients", MappingProxyType(checked))
        object.__setattr__(self, "_pairs", tuple(checked.items()))  # what a compiled graph can read
        if self.truncation is not None:
            self.nucleus_member(self.truncation.rule)

    def __hash__(self) -> int:
        return hash((frozenset(self._pairs), self.truncation))  # as they are equal, in any order

    def __reduce__(self) -> tuple[Any, ...]:
        return Combination, (dict(self.coefficients), self.truncation)

    def __str__(self) -> str:
        formula = ""
        for name, value in self._pairs:
            if value == 0:
                continue
            number = "" if value in (1, -1) else f"{_shown(value)} "
            sign = "-" if isinstance(value, float) and value < 0 else "+"
            formula += f" {sign} {number}{name}" if formula else f"{'-' if sign == '-' else ''}{number}{name}"
        return formula if self.truncation is None else f"{formula}, {self.truncation}"

    @classmethod
    def emulate(
        cls, alpha: Coefficient | None = None, beta: Coefficient | None = None, truncation: Truncation | None = None
    ) -> Combination:
        """
        Emulated fine-tuning (EFT paper, equation 4). With `alpha`, the strength of the behaviour delta: `base + alpha (tuned -
        reference)`; with `beta`, the amplification of the up-scaling delta: `tuned + beta (base - reference)`. They agree at 1, the
        default. Down-scaling is the same with a small base and a large tuned and reference.
        """
        if alpha is not None and beta is not None:
            raise ValueError(f"Give `alpha` or `beta`, not both (they agree only at 1): got alpha={alpha}, beta={beta}.")
        if beta is not None:
            return cls({BASE: beta, TUNED: 1.0, REFERENCE: _minus(beta)}, truncation)
        alpha = 1.0 if alpha is None else alpha
        return cls({BASE: 1.0, TUNED: alpha, REFERENCE: _minus(alpha)}, truncation)

    @classmethod
    def steer(
        cls,
        weights: Mapping[str, float],
        truncation: Truncation | None = None,
        references: Mapping[str, str] | None = None,
    ) -> Combination:
        """
        Several behaviours at once: `base + sum_i w_i (tuned_i - reference)` (EFT paper, section 3.3), with one shared reference, or
        with the one that `references` names for a tuned member.
        """
        _check_tuned_names("steer", weights)
        if unknown := set(references or ()) - set(weights):
            raise ValueError(f"`references` names {sorted(unknown)}, but the tuned members are {list(weights)}.")
        taken: dict[str, float] = {}
        for name, w in weights.items():
            reference = (references or {}).get(name, REFERENCE)
            taken[reference] = taken.get(reference, 0.0) + w
        if clash := taken.keys() & {BASE, *weights}:
            raise ValueError(f"{clash.pop()!r} cannot be the reference of a tuned member: it is a member of another kind.")
        return cls({BASE: 1.0, **weights, **{name: _minus(w) for name, w in taken.items()}}, truncation)

    @classmethod
    def interpolate(cls, w: Coefficient) -> Combination:
        """Decoding-time realignment (DeRa, arXiv 2402.02992): `(1 - w) reference + w tuned`, no base. `w > 1` extrapolates."""
        return cls({TUNED: w, REFERENCE: _mapped(w, lambda value: 1.0 - value)})

    @classmethod
    def proxy(cls, alpha: Coefficient = 1.0) -> Combination:
        """Proxy-tuning (arXiv 2401.08565): `base + alpha (tuned - reference)`, its expert being tuned and its anti-expert reference."""
        return cls.emulate(alpha=alpha)

    @classmethod
    def experts(cls, alpha: Coefficient = 2.0, p: float = 0.9) -> Combination:
        """DExperts (arXiv 2105.03023): `base + alpha (tuned - reference)` within the base's nucleus of mass `p`."""
        return cls.emulate(alpha=alpha, truncation=Truncation("base", p))

    @classmethod
    def contrast(cls, strength: float = 0.5, plausibility: float = 0.1) -> Combination:
        """
        Contrastive decoding (arXiv 2210.15097, 2309.09117): `(1 + strength) base - strength reference` where the base finds the token
        plausible.
        """
        return cls({BASE: 1.0 + strength, REFERENCE: _minus(strength)}, Truncation("plausible", plausibility))

    @classmethod
    def guide(cls, scale: Coefficient = 1.5) -> Combination:
        """
        Classifier-free guidance (arXiv 2306.17806): `reference + scale (base - reference)`, the base and the reference being one model,
        and the reference's prompt the one to get away from.
        """
        return cls({BASE: scale, REFERENCE: _mapped(scale, lambda value: 1.0 - value)})

    @classmethod
    def mix(cls, weights: Mapping[str, float]) -> Combination:
        """Multi-objective decoding (MOD, arXiv 2406.18853): `sum_i w_i tuned_i`, weights that sum to 1, no base and no reference."""
        _check_tuned_names("mix", weights)
        if not math.isclose(sum(weights.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"The weights of `mix` must sum to 1, got {dict(weights)} = {sum(weights.values())}.")
        return cls(dict(weights))

    @classmethod
    def of(
        cls, alpha: Coefficient | None, beta: Coefficient | None, combination: Combination | None, tuned: Any
    ) -> Combination:
        """The recipe that the arguments of a leaf describe: a `combination`, or the shorthands `alpha` and `beta`."""
        if combination is not None:
            if alpha is not None or beta is not None:
                raise ValueError("Give a `combination` or `alpha`/`beta`, not both: these are shorthands for one.")
            return combination
        if isinstance(tuned, Mapping) and set(tuned) != {TUNED}:
            raise ValueError(
                f"With the tuned members {', '.join(map(repr, tuned))}, say how they are weighted: "
                "`combination=Combination.steer({...})`."
            )
        return cls.emulate(alpha, beta)

    def coefficient(self, name: str) -> float:
        """The coefficient of a member, 0 if it has none."""
        value = next((value for known, value in self._pairs if known == name), 0.0)
        if not isinstance(value, float):
            raise ValueError(f"The coefficient of the member {name!r} is a schedule: say for which positions, with `at`.")
        return value

    @property
    def scheduled(self) -> bool:
        """Whether a coefficient changes with the position."""
        return not all(isinstance(value, float) for _, value in self._pairs)

    def at(self, positions: Iterable[int], names: Sequence[str]) -> torch.Tensor:
        r"""
        The coefficients of some positions.

        Args:
            positions (`Iterable[int]`): How many tokens were generated before.
            names (`Sequence[str]`): The members, in the order of the columns.

        Returns:
            `torch.FloatTensor` of shape `(positions, members)`.

        Raises:
            `ValueError`: If a schedule's value is not a finite number.
        """
        values = dict(self._pairs)
        return torch.tensor([[_at(name, values.get(name, 0.0), position) for name in names] for position in positions])

    @property
    def tuned_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.coefficients if name not in (BASE, REFERENCE))

    def nucleus_member(self, rule: Rule) -> str:
        """The member whose nucleus, or most likely token, a rule goes by. Raises a `ValueError` if there is none, or not just one."""
        if rule in ("base", "plausible"):
            if BASE not in self.coefficients:
                raise ValueError(f"The truncation {rule!r} needs the member 'base', got {list(self.coefficients)}.")
            return BASE
        if len(self.tuned_names) != 1:
            raise ValueError(
                f"The truncation {rule!r} takes the nucleus of the tuned member and needs exactly one, got "
                f"{list(self.tuned_names)}. Use the rule 'base' or 'plausible' here."
            )
        return self.tuned_names[0]

    def check_names(self, names: tuple[str, ...]) -> None:
        """Raise a `ValueError` if the recipe names a member that is not among `names`."""
        if unknown := [name for name in self.coefficients if name not in names]:
            raise ValueError(
                f"The combination names {', '.join(map(repr, unknown))}, but the members are {', '.join(map(repr, names))}. "
                "Give a model for each name, or a combination of the members that are there."
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description, read back by [`Combination.from_dict`], which refuses what was a callable."""
        values = {name: None if callable(v) else list(v) if isinstance(v, tuple) else v for name, v in self._pairs}
        description: dict[str, Any] = {"coefficients": values}
        if self.truncation is not None:
            description["truncation"] = {"rule": self.truncation.rule, "p": self.truncation.p}
        return description

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Combination:
        coefficients, truncation = description.get("coefficients"), description.get("truncation")
        if not isinstance(coefficients, Mapping):
            raise ValueError(f"A recipe must have `coefficients` by member, got {description!r:.200}.")
        if truncation and (not isinstance(truncation, Mapping) or set(truncation) != {"rule", "p"}):
            raise ValueError(
                f"The `truncation` of a recipe must have `rule` and `p`, and nothing else, got {truncation!r:.200}."
            )
        if lost := [name for name, value in coefficients.items() if value is None]:
            raise ValueError(f"The coefficients of {lost} were callables, which are not saved. Give the combination anew.")
        return cls(dict(coefficients), Truncation(**truncation) if truncation else None)


def _checked(name: str, value: Any) -> Any:
    """A float, a tuple of them, or a callable."""
    if callable(value):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return tuple(_number(name, each) for each in value)
    return _number(name, value)


def _number(name: str, value: Any) -> float:
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number that no float is
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"The coefficient of the member {name!r} must be a finite number, got {value!r:.80}.")
    return number


def _at(name: str, value: Any, position: int) -> float:
    if callable(value):
        return _number(name, value(position))
    return value[min(position, len(value) - 1)] if isinstance(value, tuple) else value


def _mapped(value: Any, change: Callable[[float], float]) -> Any:
    """The same change to a number, to every value of a sequence, or to what a callable will say."""
    if callable(value):
        return lambda position: change(value(position))
    return [change(each) for each in value] if isinstance(value, Sequence) else change(value)


def _minus(value: Any) -> Any:
    # not -value, whose negative zero would show in every message
    return _mapped(value, lambda number: 0.0 - number)


def _shown(value: Any) -> str:
    if callable(value):
        return f"{getattr(value, '__name__', type(value).__name__)}(t)".replace("<lambda>", "f")
    return f"({', '.join(f'{each:g}' for each in value)})" if isinstance(value, tuple) else f"{abs(value):g}"


def _check_tuned_names(constructor: str, weights: Mapping[str, float]) -> None:
    if not weights or BASE in weights or REFERENCE in weights:
        raise ValueError(f"`{constructor}` takes the weights of the tuned members by name, got {dict(weights)}.")
