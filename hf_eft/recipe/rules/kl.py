"""The coefficient that keeps the combination as near to the base as the tuned model is to its reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..phases import BASE, REFERENCE, TUNED
from .measures import expected, kl
from .rule import LogProbs, Rule, check_members, check_number, of

# Newton's steps on the root of the divergence, which is nearly a straight line, within a bracket that each step narrows.
_STEPS = 16


@dataclass(frozen=True)
class KLConstrained(Rule):
    r"""
    The largest alpha, from 0 to `most`, at which the combination is no further from the base than `bound` times as far as the tuned model
    is from its reference:

        KL(c_alpha || base) <= bound * KL(tuned || reference),   c_alpha = softmax(log base + alpha (log tuned - log reference))

    Where the base is of another opinion than the reference, a delta that moves the small model a little may move the base far, and is
    then held back; where it moves it less, it is let out. After Dynamic Logits Fusion (arXiv 2406.15480), which chooses at each token the
    weight that makes both divergences most alike. With several deltas, `steer({"a": KLConstrained(tuned="a"), "b":
    KLConstrained(tuned="b")})` solves for each of them as if it were the only one; the paper looks for all weights together.

    The divergence from the base grows with alpha: its derivative is `alpha` times the variance of `log tuned - log reference` under
    `c_alpha`. So there is one solution, which is computed in float64. Where tuned and reference say the same, any alpha will do, and it
    is `most`.

    Args:
        bound (`float`, *optional*, defaults to 1): The factor, 0 or more.
        most (`float`, *optional*, defaults to 2):
            The largest alpha. The bound cannot be reached where it is above `-log` of what the base thinks of the delta's favourite.
        tuned, base, reference (`str`, *optional*): The members.
        drafting (`float`, *optional*, defaults to 1): See [`Rule`].

    Example (worked by hand: at alpha 0.5 the odds `9 : 1` of the delta are `3 : 1`):

    ```python
    >>> import torch
    >>> from hf_eft import Combination, KLConstrained

    >>> rule = KLConstrained(bound=1.0)
    >>> print(Combination.emulate(alpha=rule))
    base + kl(1, to 2) tuned - kl(1, to 2) reference
    >>> even, sure = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.9, 0.1]]]).log()
    >>> rule({"base": even, "tuned": sure, "reference": even})  # the base is the reference: nothing is held back
    tensor([[1.]])
    ```
    """

    name = "kl"

    bound: float = 1.0
    most: float = 2.0
    tuned: str = TUNED
    base: str = BASE
    reference: str = REFERENCE
    drafting: float = 1.0

    def __post_init__(self) -> None:
        check_number(self, "bound", self.bound, 0)
        check_number(self, "most", self.most, 0)
        check_number(self, "drafting", self.drafting)
        check_members(self, *self.reads)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.base, self.tuned, self.reference)

    def __str__(self) -> str:
        return f"kl({self.bound:g}, to {self.most:g}{of(self.tuned)})"

    def __call__(self, log_probs: LogProbs) -> torch.Tensor:
        base, tuned, reference = (log_probs[name].double().log_softmax(-1) for name in self.reads)
        allowed = self.bound * kl(tuned, reference)  # (batch, positions)
        allowed = torch.nan_to_num(allowed, nan=0.0, posinf=math.inf)  # 0 times an infinite divergence: nothing is allowed
        said = (base > -math.inf) & (tuned > -math.inf) & (reference > -math.inf)
        base = base.masked_fill(~said, -math.inf)
        delta = torch.where(said, tuned - reference, 0.0)
        delta = delta - expected(base, delta)[..., None]  # a constant changes nothing, and small numbers cancel less
        return _largest(base, delta, allowed, self.most).to(log_probs[self.base].dtype)


def _largest(base: torch.Tensor, delta: torch.Tensor, allowed: torch.Tensor, most: float) -> torch.Tensor:
    """The largest alpha up to `most` at which the divergence from the base is `allowed`, `(batch, positions)`; 0 if there is none."""
    low, high = torch.zeros_like(allowed), torch.full_like(allowed, most)
    alpha, root = high, allowed.sqrt()
    free = _divergence(base, delta, high)[0] <= allowed
    for _ in range(_STEPS):
        far, slope = _divergence(base, delta, alpha)
        low, high = torch.where(far <= allowed, alpha, low), torch.where(far <= allowed, high, alpha)
        # Newton's step on sqrt(far), whose derivative is slope / (2 sqrt(far)).
        step = alpha + 2 * far.sqrt() * (root - far.sqrt()) / slope
        before, alpha = alpha, torch.where((step >= low) & (step <= high), step, (low + high) / 2)
        # Elsewhere a look at the values would wait for the device, or cannot be compiled.
        if alpha.device.type == "cpu" and not torch.compiler.is_compiling() and torch.allclose(alpha, before, 1e-12, 0.0, True):
            break
    return torch.where(free, most, torch.where(allowed > 0, alpha, 0.0))


def _divergence(base: torch.Tensor, delta: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the combination at `alpha`, `(batch, positions)`, is from the base, and how fast that grows."""
    tilted = base + alpha[..., None] * delta  # (batch, positions, vocab)
    norm = tilted.logsumexp(-1)
    p = (tilted - norm[..., None]).exp()
    mean = (p * delta).sum(-1)
    variance = ((p * delta * delta).sum(-1) - mean * mean).clamp(min=0)
    return (alpha * mean - norm).clamp(min=0), alpha * variance
