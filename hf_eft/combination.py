"""The mathematics of emulated fine-tuning: one log-linear combination of language models, as functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch

Rule = Literal["keep", "drop", "base", "plausible"]

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

    Args:
        coefficients (`Mapping[str, float]`):
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
    >>> dict(Combination.emulate(beta=1.5).coefficients)
    {'base': 1.5, 'tuned': 1.0, 'reference': -1.5}
    ```
    """

    coefficients: Mapping[str, float]
    truncation: Truncation | None = None
    _pairs: tuple[tuple[str, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checked: dict[str, float] = {}
        for name, value in self.coefficients.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"The coefficient of the member {name!r} must be a finite number, got {value!r}.")
            checked[name] = float(value)
        if not any(checked.values()):
            raise ValueError(f"At least one coefficient must differ from 0, got {checked or 'no members'}.")
        object.__setattr__(self, "coefficients", MappingProxyType(checked))
        object.__setattr__(self, "_pairs", tuple(checked.items()))  # what a compiled graph can read
        if self.truncation is not None:
            self._nucleus_member(self.truncation.rule)

    def __hash__(self) -> int:
        return hash((self._pairs, self.truncation))

    def __reduce__(self) -> tuple[Any, ...]:
        return Combination, (dict(self.coefficients), self.truncation)

    @classmethod
    def emulate(
        cls, alpha: float | None = None, beta: float | None = None, truncation: Truncation | None = None
    ) -> Combination:
        """
        Emulated fine-tuning. With `alpha`, the strength of the behaviour delta: `base + alpha (tuned - reference)`. With
        `beta`, the amplification of the up-scaling delta: `tuned + beta (base - reference)`. They agree at 1, the default.
        """
        if alpha is not None and beta is not None:
            raise ValueError(f"Give `alpha` or `beta`, not both (they agree only at 1): got alpha={alpha}, beta={beta}.")
        if beta is not None:
            return cls({BASE: beta, TUNED: 1.0, REFERENCE: _minus(beta)}, truncation)
        alpha = 1.0 if alpha is None else alpha
        return cls({BASE: 1.0, TUNED: alpha, REFERENCE: _minus(alpha)}, truncation)

    @classmethod
    def steer(cls, weights: Mapping[str, float], truncation: Truncation | None = None) -> Combination:
        """Several behaviours at once: `base + sum_i w_i (tuned_i - reference)`, with one shared reference."""
        _check_tuned_names("steer", weights)
        return cls({BASE: 1.0, **weights, REFERENCE: _minus(sum(weights.values()))}, truncation)

    @classmethod
    def interpolate(cls, w: float) -> Combination:
        """Decoding-time realignment (DeRa): `(1 - w) reference + w tuned`, no base. `w > 1` extrapolates."""
        return cls({TUNED: w, REFERENCE: 1.0 - w})

    @classmethod
    def contrast(cls, strength: float = 0.5, plausibility: float = 0.1) -> Combination:
        """Contrastive decoding: `(1 + strength) base - strength reference` where the base finds the token plausible."""
        return cls({BASE: 1.0 + strength, REFERENCE: _minus(strength)}, Truncation("plausible", plausibility))

    @classmethod
    def mix(cls, weights: Mapping[str, float]) -> Combination:
        """Multi-objective decoding (MOD): `sum_i w_i tuned_i` with weights that sum to 1, no base and no reference."""
        _check_tuned_names("mix", weights)
        if not math.isclose(sum(weights.values()), 1.0, abs_tol=1e-6):
            raise ValueError(f"The weights of `mix` must sum to 1, got {dict(weights)} = {sum(weights.values())}.")
        return cls(dict(weights))

    @classmethod
    def of(cls, alpha: float | None, beta: float | None, combination: Combination | None, tuned: Any) -> Combination:
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
        return next((value for known, value in self._pairs if known == name), 0.0)

    @property
    def tuned_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.coefficients if name not in (BASE, REFERENCE))

    def _nucleus_member(self, rule: Rule) -> str:
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
        """A JSON-able description, read back by [`Combination.from_dict`]."""
        description: dict[str, Any] = {"coefficients": dict(self.coefficients)}
        if self.truncation is not None:
            description["truncation"] = {"rule": self.truncation.rule, "p": self.truncation.p}
        return description

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Combination:
        truncation = description.get("truncation")
        return cls(dict(description["coefficients"]), Truncation(**truncation) if truncation else None)


def _minus(value: float) -> float:
    """-value without a negative zero, which would show in every message."""
    return 0.0 - value


def _check_tuned_names(constructor: str, weights: Mapping[str, float]) -> None:
    if not weights or BASE in weights or REFERENCE in weights:
        raise ValueError(f"`{constructor}` takes the weights of the tuned members by name, got {dict(weights)}.")


def combine(
    logits: Mapping[str, torch.Tensor],
    combination: Combination,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Combine the members' logits of a step.

    A token that any member with a say (a coefficient other than 0) rules out with `-inf` is ruled out. Terms that share one
    tensor are added up before it is read, so that coefficients which cancel leave no rounding error behind.

    Args:
        logits (`Mapping[str, torch.Tensor]`):
            Raw logits or log-probs by member name, each of shape `(batch, positions, vocab)`, on one device. No NaN, no `+inf`.
        combination ([`Combination`]):
            The coefficients and the truncation.
        rows (`torch.Tensor` of shape `(batch, members)`, *optional*):
            Coefficients for each row instead of the combination's, columns in the order of `logits`.

    Returns:
        `torch.Tensor` of shape `(batch, positions, vocab)`, float32, in a new buffer: not normalised. Without a truncation it
        is the plain sum of the terms, so that a row's constant stays that of the members' logits.
    """
    if combination.truncation is None:
        return _weighted_sum(_terms(logits, combination, rows))
    by_name: dict[str, torch.Tensor] = {}
    for name, x in logits.items():
        twin = next((by_name[other] for other, y in logits.items() if y is x and other in by_name), None)
        by_name[name] = x.float().log_softmax(-1) if twin is None else twin
    total = _weighted_sum(_terms(by_name, combination, rows))
    return _truncate(total, by_name, combination.truncation, combination._nucleus_member(combination.truncation.rule))


def _terms(
    logits: Mapping[str, torch.Tensor], combination: Combination, rows: torch.Tensor | None
) -> list[tuple[torch.Tensor, float | torch.Tensor]]:
    """The distinct tensors with their net coefficients: a number, or (batch, 1, 1) for coefficients per row."""
    terms: list[tuple[torch.Tensor, float | torch.Tensor]] = []
    for column, (name, values) in enumerate(logits.items()):
        c: float | torch.Tensor = combination.coefficient(name)
        if rows is not None:
            c = rows[:, column].to(values.device, torch.float32).view(-1, 1, 1)  # (batch, 1, 1)
        twin = next((i for i, (known, _) in enumerate(terms) if known is values), None)
        if twin is None:
            terms.append((values, c))
        else:
            terms[twin] = (values, terms[twin][1] + c)
    return [(values, c) for values, c in terms if isinstance(c, torch.Tensor) or c != 0]


def _weighted_sum(terms: list[tuple[torch.Tensor, float | torch.Tensor]]) -> torch.Tensor:
    if not terms:
        raise ValueError("The coefficients of members that share one model cancel to 0: nothing is left to combine.")
    total: Any = None
    for values, c in terms:
        if isinstance(c, torch.Tensor):
            term = torch.where(c == 0, 0.0, c * values)  # 0 * -inf is NaN, and a member without a say has none
            total = term if total is None else total.add_(term)
        elif total is None:
            total = values.to(torch.float32, copy=True) if c == 1 else values.float() * c
        else:
            total = total.add_(values, alpha=c)
    # With members free of NaN and +inf, these arise only from some member's -inf.
    return torch.nan_to_num_(total, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _truncate(
    total: torch.Tensor, log_probs: Mapping[str, torch.Tensor], truncation: Truncation, guide_name: str
) -> torch.Tensor:
    guide = log_probs[guide_name]  # (batch, positions, vocab)
    if truncation.rule == "plausible":
        outside = guide < guide.amax(-1, keepdim=True) + math.log(truncation.p)
    else:
        outside = ~nucleus(guide, truncation.p)
    if truncation.rule == "keep":
        return torch.where(outside, guide, total)
    return total.masked_fill_(outside, -math.inf)


def nucleus(log_probs: torch.Tensor, p: float) -> torch.Tensor:
    """
    The smallest set of most likely tokens with probability mass `p` or more, as a boolean tensor of the shape of
    `log_probs`, `(..., vocab)`. Never empty.
    """
    ordered, order = log_probs.sort(dim=-1, descending=True)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    inside = mass_before < p
    inside[..., 0] = True
    return torch.zeros_like(inside).scatter_(-1, order, inside)
