"""What a loss is made of, token by token, computed in pieces over positions: the combined logits are never there for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

_ELEMENTS = 2**25  # of one piece of logits: 128 MiB in float32


def piece_of(vocab_size: int) -> int:
    """How many positions a piece has by default."""
    return max(1, _ELEMENTS // vocab_size)


def in_pieces(
    states: Mapping[str, torch.Tensor],
    targets: torch.Tensor,
    combined: Callable[[Mapping[str, torch.Tensor], slice], torch.Tensor],
    positions: int,
    wanted: Collection[str],
    temperature: float = 1.0,
) -> dict[str, torch.Tensor]:
    r"""
    Numbers for each token that is predicted. The backward pass computes a piece's logits again.

    Args:
        states (`Mapping[str, torch.Tensor]`): By distinct member, what its logits are made of, `(tokens, width)`.
        targets (`torch.LongTensor` of shape `(tokens,)`): The tokens.
        combined (`Callable`): Makes the combined logits, `(tokens, vocab)`, of a piece of the states; told which piece it is.
        positions (`int`): How many tokens a piece has.
        wanted (`Collection[str]`): Which numbers, see [`numbers_of`].
        temperature (`float`, *optional*, defaults to 1): What the combined logits are divided by.

    Returns:
        `dict[str, torch.Tensor]`: By name, of shape `(tokens,)`.
    """
    names = list(states)

    def piece(part: slice, target: torch.Tensor, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        return numbers_of(combined(dict(zip(names, tensors, strict=True)), part), target, wanted, temperature)

    found: list[dict[str, torch.Tensor]] = []
    for start in range(0, max(1, len(targets)), positions):  # a batch without labels has a loss of 0
        part = slice(start, start + positions)
        tensors = [states[name][part] for name in names]
        # A single piece is there once, whether it is computed again or not.
        if torch.is_grad_enabled() and len(targets) > positions:
            found.append(checkpoint(piece, part, targets[part], *tensors, use_reentrant=False))
        else:
            found.append(piece(part, targets[part], *tensors))
    return {key: torch.cat([numbers[key] for numbers in found]) for key in wanted}


def numbers_of(
    logits: torch.Tensor, targets: torch.Tensor, wanted: Collection[str], temperature: float = 1.0
) -> dict[str, torch.Tensor]:
    r"""
    Args:
        logits (`torch.FloatTensor` of shape `(tokens, vocab)`): Not normalised.
        targets (`torch.LongTensor` of shape `(tokens,)`): The tokens.
        wanted (`Collection[str]`):
            Of `"log_probs"`, of the tokens; `"entropy"`, of the distributions; and, without gradients, `"log_sum_sq_probs"`, the logarithm
            of the sum of the squared probabilities, `"mean_logits"`, and `"is_top1"`, whether the token is the likeliest.
        temperature (`float`, *optional*, defaults to 1): What the logits are divided by.
    """
    logits = logits if temperature == 1.0 else logits / temperature
    total = logits.logsumexp(-1)  # (tokens,)
    numbers: dict[str, Any] = {"log_probs": logits.gather(-1, targets[:, None])[:, 0] - total}
    if "entropy" in wanted:
        # A token that is ruled out adds nothing: 0 * -inf would be NaN.
        numbers["entropy"] = total - (logits - total[:, None]).exp().mul(logits.masked_fill(logits == -torch.inf, 0.0)).sum(-1)
    with torch.no_grad():
        if "log_sum_sq_probs" in wanted:
            numbers["log_sum_sq_probs"] = (2 * (logits - total[:, None])).logsumexp(-1)
        if "mean_logits" in wanted:
            possible = logits != -torch.inf
            numbers["mean_logits"] = logits.masked_fill(~possible, 0.0).sum(-1) / possible.sum(-1)
        if "is_top1" in wanted:
            numbers["is_top1"] = logits.argmax(-1) == targets
    return {key: numbers[key] for key in wanted}
