"""Coefficients by how sure the members are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..phases import BASE, TUNED
from .measures import confidence, entropy
from .rule import LogProbs, Rule, check_members, check_number, of


@dataclass(frozen=True)
class Confidence(Rule):
    r"""
    `most` where the base is not sure enough, `least` elsewhere. The base is sure enough where its most likely token has a probability of
    at least

    - the best that the tuned model would bet, less `margin`, without a `threshold`: `max p_base >= max p_tuned - margin`. The criterion
      of "On the Rejection Criterion for Proxy-based Test-time Alignment" (arXiv 2604.16146), which compares what the base thinks of a
      token with the tuned model's best confidence. Its argument: several good ways to go on make every model unsure, and are no reason to
      defer.
    - `threshold`, where it is given: `max p_base >= threshold`, the criterion of nudging (arXiv 2410.09300).

    There a rejected token is drawn anew from the tuned model alone, and the criterion of the first is asked of each token; here it is
    asked of the base's most likely token, and what changes is the strength of the delta. `Combination({"base": 1 - rule, "tuned": rule})`
    hands the token over to the tuned model, as they do.

    The rule jumps: where both sides are equal up to rounding, so may its choice be another in a batch than alone.

    Args:
        margin (`float`, *optional*, defaults to 0): From -1 to 1; below 0 the tuned model takes over more often.
        threshold (`float`, *optional*): From 0 to 1. The second criterion instead of the first.
        most (`float`, *optional*, defaults to 1): The coefficient where the base is unsure.
        least (`float`, *optional*, defaults to 0): The coefficient elsewhere.
        base, tuned (`str`, *optional*): The members.
        drafting (`float`, *optional*, defaults to 1): See [`Rule`].

    Example:

    ```python
    >>> import torch
    >>> from hf_eft import Combination, Confidence

    >>> print(Combination.emulate(alpha=Confidence(margin=0.1)))
    base + bet(0.1) tuned - bet(0.1) reference
    >>> base = torch.tensor([[[0.6, 0.4], [0.5, 0.5]]]).log()
    >>> tuned = torch.tensor([[[0.3, 0.7], [0.1, 0.9]]]).log()
    >>> Confidence(margin=0.1)({"base": base, "tuned": tuned})  # 0.6 is not below 0.7 - 0.1, but 0.5 is below 0.9 - 0.1
    tensor([[0., 1.]])
    ```
    """

    name = "confidence"

    margin: float = 0.0
    threshold: float | None = None
    most: float = 1.0
    least: float = 0.0
    base: str = BASE
    tuned: str = TUNED
    drafting: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "margin", self.margin, -1, 1)
        if self.threshold is not None:
            check_number(self, "threshold", self.threshold, 0, 1)
            if self.margin:
                raise ValueError(
                    f"Give `margin` or `threshold` of the rule {self.name!r}: got {self.margin} and {self.threshold}."
                )
        for which in ("most", "least", "drafting"):
            check_number(self, which, getattr(self, which))
        check_members(self, self.base, self.tuned)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.base, self.tuned) if self.threshold is None else (self.base,)

    def __str__(self) -> str:
        said = f"bet({self.margin:g}" if self.threshold is None else f"unsure({self.threshold:g}"
        return said + ("" if (self.least, self.most) == (0, 1) else f", {self.least:g} to {self.most:g}") + of(self.tuned) + ")"

    def __call__(self, log_probs: LogProbs) -> torch.Tensor:
        sure = confidence(log_probs[self.base])
        enough = confidence(log_probs[self.tuned]) - self.margin if self.threshold is None else self.threshold
        return torch.where(sure < enough, self.most, self.least).to(sure.dtype)


@dataclass(frozen=True)
class Entropy(Rule):
    r"""
    How unsure the base is, beside the tuned model: `most * H(base) / (H(base) + H(tuned))`, with the entropies `H` of the next token.
    `most / 2` where both are as unsure, 0 where the base is certain, `most` where the tuned model is. It goes through the numbers between
    without a jump, in the way in which contrastive and ensemble decoding weigh members by their entropies.

    Args:
        most (`float`, *optional*, defaults to 2): The coefficient where the tuned model is certain and the base is not.
        base, tuned (`str`, *optional*): The members.
        drafting (`float`, *optional*, defaults to 1): See [`Rule`].

    Example:

    ```python
    >>> import torch
    >>> from hf_eft import Combination, Entropy

    >>> print(Combination.emulate(alpha=Entropy()))
    base + entropy(to 2) tuned - entropy(to 2) reference
    >>> two, four = torch.tensor([[[0.5, 0.5, 0, 0]]]).log(), torch.tensor([[[0.25] * 4]]).log()
    >>> Entropy(most=3)({"base": four, "tuned": two})  # 2 bits and 1 bit: 3 * 2 / (2 + 1)
    tensor([[2.]])
    ```
    """

    name = "entropy"

    most: float = 2.0
    base: str = BASE
    tuned: str = TUNED
    drafting: float = 1.0

    def __post_init__(self) -> None:
        for which in ("most", "drafting"):
            check_number(self, which, getattr(self, which))
        check_members(self, *self.reads)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.base, self.tuned)

    def __str__(self) -> str:
        return f"entropy(to {self.most:g}{of(self.tuned)})"

    def __call__(self, log_probs: LogProbs) -> torch.Tensor:
        base, tuned = (entropy(log_probs[name]) for name in self.reads)
        both = base + tuned
        # Two members that are certain are as unsure as each other.
        return self.most * torch.where(both > 0, base / both.clamp(min=torch.finfo(both.dtype).tiny), 0.5)
