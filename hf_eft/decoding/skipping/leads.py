"""Whether the base alone decides a position, as functions of tensors."""

from __future__ import annotations

import math

import torch

from ...recipe.rules.measures import nucleus
from ...recipe.truncation import Truncation

_CLOSE = 1e-3  # of a probability: beyond it the nucleus, which sorts the vocabulary, need not be asked


def one_left(log_probs: torch.Tensor, truncation: Truncation) -> torch.Tensor:
    r"""
    Where a truncation by the base leaves one token, which is certain whatever the others say.

    Args:
        log_probs (`torch.Tensor` of shape `(rows, positions, vocab)`): The base's.
        truncation ([`Truncation`]): Its rule is `"base"` or `"plausible"`.

    Returns:
        `torch.BoolTensor` of shape `(rows, positions)`.
    """
    top = log_probs.amax(-1, keepdim=True)
    if truncation.rule == "plausible":
        return (log_probs >= top + math.log(truncation.p)).sum(-1) == 1
    if bool((top.exp() < truncation.p - _CLOSE).all()):
        return torch.zeros_like(top[..., 0], dtype=torch.bool)
    return nucleus(log_probs, truncation.p).sum(-1) == 1


def lead(term: torch.Tensor) -> torch.Tensor:
    """By how much the best token leads, of the base's term `(rows, positions, vocab)`: `(rows, positions)`."""
    best = term.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def moved(combined: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
    r"""
    By how much the other members moved the strongest other token towards the base's choice.

    Args:
        combined (`torch.Tensor` of shape `(rows, positions, vocab)`): The combination.
        term (`torch.Tensor` of shape `(rows, positions, vocab)`): The base's part of it.

    Returns:
        `torch.Tensor` of shape `(rows, positions)`: 0 or less where there is no other token.
    """
    choice = term.argmax(-1, keepdim=True)
    other = combined.scatter(-1, choice, -math.inf).argmax(-1, keepdim=True)
    return (_ahead(combined, other, choice) - _ahead(term, other, choice))[..., 0]


def _ahead(values: torch.Tensor, token: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return values.gather(-1, token) - values.gather(-1, of)
