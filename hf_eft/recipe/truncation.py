"""Which tokens may be re-weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Where = Literal["keep", "drop", "base", "plausible"]


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

    rule: Where
    p: float

    def __str__(self) -> str:
        where = {"keep": "re-weighted", "drop": "only", "base": "only", "plausible": "only"}[self.rule]
        if self.rule == "plausible":
            return f"{where} where p_base >= {self.p:g} of its maximum"
        return f"{where} within the nucleus of {'base' if self.rule == 'base' else 'tuned'} of mass {self.p:g}"

    def __post_init__(self) -> None:
        if self.rule not in get_args(Where):
            raise ValueError(f"`rule` must be one of {', '.join(get_args(Where))}, got {self.rule!r}.")
        if not (isinstance(self.p, (int, float)) and 0 < self.p <= 1):
            raise ValueError(f"`p` of the truncation {self.rule!r} must be in (0, 1], got {self.p!r}.")
