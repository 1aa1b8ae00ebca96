"""Recipes: which members are combined, with which coefficients, and which tokens may be re-weighted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from .coefficients import ByPhase, Coefficient, Weight, at, checked, drafting, mapped, minus, no_number, rules_of, shown, total
from .described import plain, read
from .phases import ANSWER, BASE, REFERENCE, TUNED, Phase, check_phases, spelled, speller
from .rules.rule import ByRule, Rule
from .truncation import Truncation, Where


@dataclass(frozen=True)
class Combination:
    r"""
    The recipe: a coefficient for every member and, optionally, a truncation. Immutable.

    The combined distribution is `softmax(sum_k c_k log p_k)` (EFT paper, equation 4, for the coefficients 1, 1, -1).

    It prints as its formula. A coefficient may be a schedule over the tokens that are generated, 0 for the first: a sequence, whose last
    value holds on, or a callable. Or it may be what a [`~hf_eft.Rule`] says of the members' log-probs at each token. Or it may be by
    phase: `{"think": 1.2, "answer": 0.6}`, numbers or rules, but one rule for a member.

    Args:
        coefficients (`Mapping[str, float or Sequence[float] or Callable[[int], float] or Rule or Mapping[str, float or Rule]]`):
            The coefficient of each member, by name. `"base"` and `"reference"` have the meaning of the paper; every other
            name is a tuned member. Missing members have the coefficient 0; those that a rule reads are members with it.
        truncation ([`Truncation`], *optional*):
            Which tokens may be re-weighted. Without it, all.
        phases (`Sequence[Phase]`, *optional*):
            The phases that coefficients by phase name, beside `"answer"`, and their budgets. Without them, coefficients by phase name
            `"think"`, from `<think>` to `</think>`.

    Raises:
        `ValueError`: If a coefficient is not finite, all are zero (in some phase), the truncation needs a member that is not there, or a
            coefficient does not say what it is in every phase.

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
    phases: Sequence[Phase] = ()
    _pairs: tuple[tuple[str, Any], ...] = field(init=False, repr=False, compare=False)
    # The coefficients that rules say, by member.
    rules: tuple[tuple[str, ByRule], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = {name: checked(name, value) for name, value in self.coefficients.items()}
        object.__setattr__(self, "rules", rules_of(values))
        values |= {read: 0.0 for _, rule in self.rules for read in rule.reads if read not in values}
        if not any(values.values()):
            raise ValueError(f"At least one coefficient must differ from 0, got {values or 'no members'}.")
        by_phase = any(isinstance(value, ByPhase) for value in values.values())
        object.__setattr__(self, "phases", tuple(self.phases) or ((Phase(),) if by_phase else ()))
        check_phases(self.phases, values)
        for phase in (ANSWER, *(phase.name for phase in self.phases)):
            if not any(value[phase] if isinstance(value, ByPhase) else value for value in values.values()):
                raise ValueError(f"At least one coefficient must differ from 0 in the phase {phase!r}, got {values}.")
        object.__setattr__(self, "coefficients", MappingProxyType(values))
        object.__setattr__(self, "_pairs", tuple(values.items()))  # what a compiled graph can read
        if self.truncation is not None:
            self.nucleus_member(self.truncation.rule)

    def __hash__(self) -> int:
        return hash((frozenset(self._pairs), self.truncation, self.phases))  # as they are equal, in any order

    def __reduce__(self) -> tuple[Any, ...]:
        return Combination, (dict(self.coefficients), self.truncation, self.phases)

    def __str__(self) -> str:
        return ", ".join((self.formula, *self.conditions))

    @property
    def formula(self) -> str:
        """The weighted sum, as text."""
        formula = ""
        for name, value in self._pairs:
            if value == 0:
                continue
            number = "" if value in (1, -1) else f"{shown(value)} "
            sign = "-" if (value.is_negative if isinstance(value, ByRule) else isinstance(value, float) and value < 0) else "+"
            formula += f" {sign} {number}{name}" if formula else f"{'-' if sign == '-' else ''}{number}{name}"
        return formula

    @property
    def conditions(self) -> list[str]:
        """What holds beside the sum, as texts: the truncation, and the phases."""
        return [str(each) for each in (self.truncation, *self.phases) if each is not None]

    @classmethod
    def emulate(
        cls,
        alpha: Coefficient | None = None,
        beta: Coefficient | None = None,
        truncation: Truncation | None = None,
        phases: Sequence[Phase] = (),
    ) -> Combination:
        """
        Emulated fine-tuning (EFT paper, equation 4). With `alpha`, the strength of the behaviour delta: `base + alpha (tuned -
        reference)`; with `beta`, the amplification of the up-scaling delta: `tuned + beta (base - reference)`. They agree at 1, the
        default. Down-scaling is the same with a small base and a large tuned and reference.
        """
        if alpha is not None and beta is not None:
            raise ValueError(f"Give `alpha` or `beta`, not both (they agree only at 1): got alpha={alpha}, beta={beta}.")
        if beta is not None:
            return cls({BASE: beta, TUNED: 1.0, REFERENCE: minus(beta)}, truncation, phases)
        alpha = 1.0 if alpha is None else alpha
        return cls({BASE: 1.0, TUNED: alpha, REFERENCE: minus(alpha)}, truncation, phases)

    @classmethod
    def steer(
        cls,
        weights: Mapping[str, Weight],
        truncation: Truncation | None = None,
        references: Mapping[str, str] | None = None,
        phases: Sequence[Phase] = (),
    ) -> Combination:
        """
        Several behaviours at once: `base + sum_i w_i (tuned_i - reference)` (EFT paper, section 3.3), with one shared reference, or
        with the one that `references` names for a tuned member.
        """
        _check_tuned_names("steer", weights)
        if unknown := set(references or ()) - set(weights):
            raise ValueError(f"`references` names {sorted(unknown)}, but the tuned members are {list(weights)}.")
        taken: dict[str, Any] = {}
        for name, w in weights.items():
            reference = (references or {}).get(name, REFERENCE)
            taken[reference] = total([taken.get(reference, 0.0), w])
        if clash := taken.keys() & {BASE, *weights}:
            raise ValueError(f"{clash.pop()!r} cannot be the reference of a tuned member: it is a member of another kind.")
        return cls({BASE: 1.0, **weights, **{name: minus(w) for name, w in taken.items()}}, truncation, phases)

    @classmethod
    def interpolate(cls, w: Coefficient, phases: Sequence[Phase] = ()) -> Combination:
        """Decoding-time realignment (DeRa, arXiv 2402.02992): `(1 - w) reference + w tuned`, no base. `w > 1` extrapolates."""
        return cls({TUNED: w, REFERENCE: mapped(w, lambda value: 1.0 - value)}, phases=phases)

    @classmethod
    def proxy(cls, alpha: Coefficient = 1.0, phases: Sequence[Phase] = ()) -> Combination:
        """Proxy-tuning (arXiv 2401.08565): `base + alpha (tuned - reference)`, its expert being tuned and its anti-expert reference."""
        return cls.emulate(alpha=alpha, phases=phases)

    @classmethod
    def experts(cls, alpha: Coefficient = 2.0, p: float = 0.9, phases: Sequence[Phase] = ()) -> Combination:
        """DExperts (arXiv 2105.03023): `base + alpha (tuned - reference)` within the base's nucleus of mass `p`."""
        return cls.emulate(alpha=alpha, truncation=Truncation("base", p), phases=phases)

    @classmethod
    def contrast(cls, strength: Weight = 0.5, plausibility: float = 0.1, phases: Sequence[Phase] = ()) -> Combination:
        """
        Contrastive decoding (arXiv 2210.15097, 2309.09117): `(1 + strength) base - strength reference` where the base finds the token
        plausible.
        """
        amplified = mapped(strength, lambda value: 1.0 + value)
        return cls({BASE: amplified, REFERENCE: minus(strength)}, Truncation("plausible", plausibility), phases)

    @classmethod
    def guide(cls, scale: Coefficient = 1.5, phases: Sequence[Phase] = ()) -> Combination:
        """
        Classifier-free guidance (arXiv 2306.17806): `reference + scale (base - reference)`, the base and the reference being one model,
        and the reference's prompt the one to get away from.
        """
        return cls({BASE: scale, REFERENCE: mapped(scale, lambda value: 1.0 - value)}, phases=phases)

    @classmethod
    def mix(cls, weights: Mapping[str, Weight], phases: Sequence[Phase] = ()) -> Combination:
        """Multi-objective decoding (MOD, arXiv 2406.18853): `sum_i w_i tuned_i`, weights that sum to 1, no base and no reference."""
        _check_tuned_names("mix", weights)
        sums = total(list(weights.values()))
        for each in sums.values() if isinstance(sums, Mapping) else [sums]:
            if isinstance(each, ByRule) or not math.isclose(each, 1.0, abs_tol=1e-6):
                raise ValueError(f"The weights of `mix` must sum to 1, got {dict(weights)} = {each}.")
        return cls(dict(weights), phases=phases)

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
            raise no_number(name, value)
        return value

    @property
    def scheduled(self) -> bool:
        """Whether a coefficient changes with the position."""
        return not all(isinstance(value, (float, ByPhase, ByRule)) for _, value in self._pairs)

    @property
    def ruled(self) -> tuple[str, ...]:
        """The members whose coefficients rules say, in some phase or in all."""
        return tuple(name for name, _ in self.rules)

    @property
    def each_rule(self) -> tuple[Rule, ...]:
        """The rules, each once."""
        return tuple(dict.fromkeys(rule for _, value in self.rules for rule, _ in value.terms))

    @property
    def read_by_rules(self) -> tuple[str, ...]:
        """The members whose log-probs rules read."""
        return tuple(dict.fromkeys(name for _, value in self.rules for name in value.reads))

    @property
    def drafting(self) -> Combination:
        """The same with a number in the place of each rule: where drafts are made without all members."""
        if not self.rules:
            return self
        return dataclasses.replace(self, coefficients={name: drafting(value) for name, value in self._pairs})

    @property
    def phased(self) -> bool:
        """Whether what follows depends on the phase of a text: coefficients, or how many tokens it may have."""
        return bool(self.phases)

    @property
    def budgeted(self) -> bool:
        """Whether a phase has a budget."""
        return any(phase.budget is not None for phase in self.phases)

    def at(self, positions: Iterable[int], names: Sequence[str], phase: str = ANSWER) -> torch.Tensor:
        r"""
        The coefficients of some positions.

        Args:
            positions (`Iterable[int]`): How many tokens were generated before.
            names (`Sequence[str]`): The members, in the order of the columns.
            phase (`str`, *optional*, defaults to `"answer"`): The phase that they are in.

        Returns:
            `torch.FloatTensor` of shape `(positions, members)`: NaN where a rule says what it is.

        Raises:
            `ValueError`: If a schedule's value is not a finite number.
        """
        values = dict(self._pairs)
        return torch.tensor([[at(name, values.get(name, 0.0), position, phase) for name in names] for position in positions])

    def row(self, names: Sequence[str]) -> torch.Tensor | dict[str, torch.Tensor]:
        """The coefficients of a row that has these for itself, `(1, members)`; by phase, where they differ."""
        if not any(isinstance(value, ByPhase) for _, value in self._pairs):
            return self.at([0], names)
        return {phase: self.at([0], names, phase) for phase in (ANSWER, *(phase.name for phase in self.phases))}

    def spelled(self, tokenizers: Mapping[str, Any]) -> Combination:
        """The same, with the tokens of its phases spelled out by the members' tokenizers, so that another tokenizer is refused."""
        tokenizer = speller(tokenizers)
        if tokenizer is None or not self.phases:
            return self
        phases = [dataclasses.replace(phase, spelled=spelled(phase, tokenizer)) for phase in self.phases]
        return dataclasses.replace(self, coefficients=dict(self.coefficients), phases=phases)

    @property
    def tuned_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.coefficients if name not in (BASE, REFERENCE))

    def nucleus_member(self, rule: Where) -> str:
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
        description: dict[str, Any] = {"coefficients": {name: plain(value) for name, value in self._pairs}}
        if self.truncation is not None:
            description["truncation"] = {"rule": self.truncation.rule, "p": self.truncation.p}
        if self.phases:
            description["phases"] = [phase.to_dict() for phase in self.phases]
        return description

    @classmethod
    def from_dict(cls, description: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None = None) -> Combination:
        """The recipe of a description; its gates have their `weights` beside it."""
        coefficients, truncation = description.get("coefficients"), description.get("truncation")
        if not isinstance(coefficients, Mapping):
            raise ValueError(f"A recipe must have `coefficients` by member, got {description!r:.200}.")
        if truncation and (not isinstance(truncation, Mapping) or set(truncation) != {"rule", "p"}):
            raise ValueError(
                f"The `truncation` of a recipe must have `rule` and `p`, and nothing else, got {truncation!r:.200}."
            )
        if lost := [name for name, value in coefficients.items() if value is None]:
            raise ValueError(
                f"The coefficients of {lost} were callables, which are not saved, nor rules of your own. Give the combination anew."
            )
        phases = description.get("phases", [])
        if not isinstance(phases, (list, tuple)):
            raise ValueError(f"The `phases` of a recipe must be a list, got {phases!r:.200}.")
        values = {name: read(value, weights) for name, value in coefficients.items()}
        return cls(values, Truncation(**truncation) if truncation else None, tuple(map(Phase.from_dict, phases)))


def _check_tuned_names(constructor: str, weights: Mapping[str, Any]) -> None:
    if not weights or BASE in weights or REFERENCE in weights:
        raise ValueError(f"`{constructor}` takes the weights of the tuned members by name, got {dict(weights)}.")
