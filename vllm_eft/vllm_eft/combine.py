"""The arithmetic: one log-linear combination of the models' logits, a row of coefficients for each row of logits."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def combine(
    logits: Mapping[str, torch.Tensor], rows: torch.Tensor, rule: str | None = None, p: float = 1.0, guide: str | None = None
) -> torch.Tensor:
    r"""
    `sum_k c_k log p_k` up to a row's constant, in float32; with a truncation, as hf_eft has it.

    Args:
        logits (`Mapping[str, torch.Tensor]`): By model, `(rows, vocabulary)` each, in the order of the columns of `rows`.
        rows (`torch.FloatTensor` of shape `(rows, models)`): The coefficients.
        rule (`str`, *optional*): `"keep"`, `"drop"`, `"base"` or `"plausible"`.
        p (`float`, *optional*): The mass of the nucleus, or the share of the likeliest token's probability.
        guide (`str`, *optional*): The model that the rule is of.

    Returns:
        `torch.FloatTensor` of shape `(rows, vocabulary)`; `-inf` where a model with a say has it.
    """
    # Differences of log-probs, and nuclei of them, want log-probs; a plain sum does not.
    terms = {name: x.float() if rule is None else x.float().log_softmax(-1) for name, x in logits.items()}
    total: torch.Tensor | None = None
    for column, x in enumerate(terms.values()):
        c = rows[:, column, None]
        term = torch.where(c == 0, 0.0, c * x)  # 0 * -inf is NaN, and a member without a say has none
        total = term if total is None else total.add_(term)
    if total is None:
        raise ValueError("There are no members. Give at least one model.")
    total = torch.nan_to_num_(total, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
    if rule is None:
        return total
    of = terms[str(guide)]
    outside = of < of.amax(-1, keepdim=True) + math.log(p) if rule == "plausible" else ~nucleus(of, p)
    return torch.where(outside, of, total) if rule == "keep" else total.masked_fill_(outside, -math.inf)


def nucleus(log_probs: torch.Tensor, p: float) -> torch.Tensor:
    """The smallest set of most likely tokens with mass `p` or more, as a boolean tensor of the shape of `log_probs`. Never empty."""
    ordered, order = log_probs.sort(dim=-1, descending=True)
    inside = ordered.exp().cumsum(-1) - ordered.exp() < p
    inside[..., 0] = True
    return torch.zeros_like(inside).scatter_(-1, order, inside)
