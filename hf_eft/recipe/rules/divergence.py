"""The coefficient by how far two members, or two contexts of one, are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..phases import BASE, REFERENCE
from .measures import jensen_shannon
from .rule import LogProbs, Rule, check_members, check_number


@dataclass(frozen=True)
class Divergence(Rule):
    r"""
    `most` times the Jensen-Shannon divergence of two members, in bits: 0 where they say the same, `most` where they share no token.

    It is how adaptive context-aware decoding (AdaCAD, arXiv 2409.07394) says how strongly a context counts: one model as base, with the
    context in its prompt, and as reference, with a prompt of its own that lacks it: `Combination.guide(1 + Divergence())` is `(1 + d)
    base - d reference`. With two models, `emulate(alpha=Divergence("tuned", "reference"))` is the delta where it says something.

    Args:
        one, other (`str`, *optional*, default to `"base"` and `"reference"`): The members, in any order.
        most (`float`, *optional*, defaults to 1): The coefficient where they are as far apart as can be.
        drafting (`float`, *optional*, defaults to 1): See [`Rule`].

    Example:

    ```python
    >>> import torch
    >>> from hf_eft import Combination, Divergence

    >>> print(Combination.guide(1 + Divergence()))
    (1 + js(base, reference)) base - js(base, reference) reference
    >>> one, other = torch.tensor([[[1.0, 0.0]]]).log(), torch.tensor([[[0.0, 1.0]]]).log()
    >>> Divergence()({"base": one, "reference": other})
    tensor([[1.]])
    ```
    """

    name = "divergence"

    one: str = BASE
    other: str = REFERENCE
    most: float = 1.0
    drafting: float = 1.0

    def __post_init__(self) -> None:
        for which in ("most", "drafting"):
            check_number(self, which, getattr(self, which))
        check_members(self, *self.reads)
        if self.one == self.other:
            raise ValueError(f"The rule {self.name!r} compares two members, got {self.one!r} twice.")

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.one, self.other)

    def __str__(self) -> str:
        return f"js({self.one}, {self.other}" + ("" if self.most == 1 else f", to {self.most:g}") + ")"

    def __call__(self, log_probs: LogProbs) -> torch.Tensor:
        one, other = (log_probs[name] for name in self.reads)
        return jensen_shannon(one, other) * (self.most / math.log(2))
