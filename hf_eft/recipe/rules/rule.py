"""A rule: a coefficient that is a function of what the members say at a position."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..phases import TUNED

LogProbs = Mapping[str, torch.Tensor]  # by member, (batch, positions, vocab) each, normalised


class Rule:
    r"""
    A coefficient that depends on what the members say: a pure function of their log-probs at a position. A recipe takes it in the place
    of a number: `emulate(alpha=rule)`.

    Contract:

    - **Called** with `log_probs` by member, normalised, in float32, `(batch, positions, vocab)` each, of the tokens that all members
      have; they are on one device and not to be written to. It returns the coefficient at each position, `(batch, positions)`, finite.
    - **Pure**: what it returns for a position depends on the log-probs of that position alone. It is called for one position or for a
      block, for rows in any order, and again for a position that was rolled back.
    - **Immutable**, and equal where it says the same.

    `1 + rule`, `1 - rule`, `-rule` and `0.5 * rule` are coefficients, too.

    Args of every rule:
        drafting (`float`, *optional*, defaults to 1):
            The number that stands in for the coefficient where a draft is made without all members, as by `model.small_combination`. What
            is drafted is looked at with the rule itself: the number changes how much is kept of a draft, and nothing else.
    """

    name: ClassVar[str] = ""  # what a saved recipe calls it; a rule without one cannot be saved
    drafting: float = 1.0

    @property
    def reads(self) -> tuple[str, ...]:
        """The members whose log-probs it is given. They are members of a recipe with this rule, whatever their coefficients."""
        raise NotImplementedError(f"{type(self).__name__} does not say which members it reads.")

    @property
    def options(self) -> dict[str, Any]:
        """What it was made with, JSON-able: the fields of a rule with a name that is a dataclass."""
        if not self.name or not dataclasses.is_dataclass(self):
            raise NotImplementedError(f"{type(self).__name__} cannot be saved.")
        return dataclasses.asdict(self)

    def __call__(self, log_probs: LogProbs) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say which coefficient follows from log-probs.")

    @staticmethod
    def of(function: Callable[[LogProbs], torch.Tensor], reads: Sequence[str], drafting: float = 1.0) -> Rule:
        r"""
        A rule by a function of one's own. It cannot be saved.

        Args:
            function (`Callable`): From log-probs by member, `(batch, positions, vocab)` each, to coefficients, `(batch, positions)`.
            reads (`Sequence[str]`): The members whose log-probs it is given.
            drafting (`float`, *optional*, defaults to 1): See [`Rule`].

        Example:

        ```python
        >>> from hf_eft import Combination, Rule

        >>> def doubt(log_probs):
        ...     return 1 - log_probs["base"].amax(-1).exp()
        >>> print(Combination.emulate(alpha=Rule.of(doubt, reads=["base"])))
        base + doubt(base) tuned - doubt(base) reference
        ```
        """
        return Written(function, tuple(reads), drafting)

    def __add__(self, other: float | Rule | ByRule) -> ByRule:
        return ByRule.of(self) + other

    __radd__ = __add__

    def __sub__(self, other: float | Rule | ByRule) -> ByRule:
        return ByRule.of(self) - other

    def __rsub__(self, number: float) -> ByRule:
        return number - ByRule.of(self)

    def __mul__(self, number: float) -> ByRule:
        return ByRule.of(self) * number

    __rmul__ = __mul__

    def __neg__(self) -> ByRule:
        return ByRule.of(self) * -1


@dataclass(frozen=True)
class Written(Rule):
    """A rule that a user wrote."""

    function: Callable[[LogProbs], torch.Tensor]
    read: tuple[str, ...]
    drafting: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"A rule is a function of log-probs by member, got {self.function!r:.80}.")
        if not self.read or not all(isinstance(name, str) for name in self.read):
            raise ValueError(f"`reads` of a rule must be the names of the members that it reads, got {self.read!r:.80}.")
        check_number(self, "drafting", self.drafting)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.read

    def __call__(self, log_probs: LogProbs) -> torch.Tensor:
        found = self.function(log_probs)
        first = next(iter(log_probs.values()))
        expected = tuple(first.shape[:-1])
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != expected:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(
                f"The rule {self} must return a tensor of shape (batch, positions), here {expected}, for log-probs of shape "
                f"{tuple(first.shape)}, got {got}."
            )
        if not torch.compiler.is_compiling():  # a compiled graph cannot raise on data
            # Where padding is read, members may say anything.
            known = torch.stack([~log_p.isnan().any(-1) for log_p in log_probs.values()]).all(0)
            if bool((wrong := known & ~torch.isfinite(found)).any()):
                row, place = wrong.nonzero()[0].tolist()
                raise ValueError(
                    f"The rule {self} must return finite numbers, got {found[row, place].item()} in row {row}, position {place}."
                )
        return found

    def __str__(self) -> str:
        called = getattr(self.function, "__name__", type(self.function).__name__).replace("<lambda>", "f")
        return f"{called}({', '.join(self.read)})"


@dataclass(frozen=True)
class ByRule:
    r"""
    A coefficient that rules say: `offset + sum_i scale_i * rule_i`. Immutable.

    Args:
        terms (`tuple[tuple[Rule, float], ...]`): The rules, each with what it is multiplied by.
        offset (`float`, *optional*, defaults to 0): What is added.
    """

    terms: tuple[tuple[Rule, float], ...]
    offset: float = 0.0

    @classmethod
    def of(cls, value: float | Rule | ByRule) -> ByRule:
        """A number, a rule or a sum of rules as a sum."""
        if isinstance(value, ByRule):
            return value
        if isinstance(value, Rule):
            return cls(((value, 1.0),))
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"A rule is added to numbers and rules, and multiplied by numbers, got {value!r:.80}.")
        return cls((), float(value))

    def __add__(self, other: float | Rule | ByRule) -> ByRule:
        more = ByRule.of(other)
        scales: dict[Rule, float] = {}
        for rule, scale in (*self.terms, *more.terms):
            scales[rule] = scales.get(rule, 0.0) + scale
        return ByRule(tuple((rule, scale) for rule, scale in scales.items() if scale), self.offset + more.offset)

    __radd__ = __add__

    def __sub__(self, other: float | Rule | ByRule) -> ByRule:
        return self + ByRule.of(other) * -1

    def __rsub__(self, number: float) -> ByRule:
        return self * -1 + number

    def __mul__(self, number: float) -> ByRule:
        by = ByRule.of(number).offset
        # 0.0 plus: not -0.0, which would show in every message
        return ByRule(tuple((rule, scale * by) for rule, scale in self.terms if scale * by), 0.0 + self.offset * by)

    __rmul__ = __mul__

    def __neg__(self) -> ByRule:
        return self * -1

    @property
    def reads(self) -> tuple[str, ...]:
        """The members that its rules read."""
        return tuple(dict.fromkeys(name for rule, _ in self.terms for name in rule.reads))

    def at(self, said: Callable[[Rule], Any]) -> Any:
        """The coefficient where each rule has `said` a number, or a tensor of them."""
        return self.offset + sum(scale * said(rule) for rule, scale in self.terms)

    @property
    def drafting(self) -> float:
        """The number that stands in for it where not all members are asked."""
        return float(self.at(lambda rule: rule.drafting))

    @property
    def is_negative(self) -> bool:
        """Whether its sign in a formula stands before it."""
        return self.offset <= 0 and all(scale < 0 for _, scale in self.terms)

    def __str__(self) -> str:
        """As it stands in a formula, without the sign that stands before it."""
        said = f"{abs(self.offset) if self.is_negative else self.offset:g}" if self.offset else ""
        for rule, scale in self.terms:
            scale = -scale if self.is_negative else scale
            size = f"{rule}" if abs(scale) == 1 else f"{abs(scale):g} {rule}"
            said += f" {'-' if scale < 0 else '+'} {size}" if said else f"{'-' if scale < 0 else ''}{size}"
        return f"({said})" if len(self.terms) > 1 or self.offset else said


def check_number(rule: Any, which: str, value: Any, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise a `ValueError` unless an option of a rule is a finite number from `least` to `most`."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and least <= value <= most
    if not fits:
        between = (
            ""
            if (least, most) == (-math.inf, math.inf)
            else f" from {least:g}" + (f" to {most:g}" if most < math.inf else " up")
        )
        raise ValueError(
            f"`{which}` of the rule {type(rule).name or type(rule).__name__!r} must be a number{between}, got {value!r:.80}."
        )


def check_members(rule: Any, *names: Any) -> None:
    """Raise a `ValueError` unless these are names of members."""
    if wrong := [name for name in names if not isinstance(name, str) or not name]:
        raise ValueError(f"The rule {type(rule).name!r} must be told members by name, got {wrong[0]!r:.80}.")


def of(tuned: str) -> str:
    """How a formula says of which tuned member a rule is, where it is not the usual one."""
    return "" if tuned == TUNED else f", of {tuned}"
