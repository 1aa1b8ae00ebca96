"""Which tokens of a batch are predicted, and from where."""

from __future__ import annotations

from typing import Any

import torch

NONE = -100  # what stands in the place of a label where there is none to learn


def next_tokens(labels: torch.Tensor | None, shift_labels: torch.Tensor | None) -> torch.Tensor:
    """The token after each position, `(batch, positions)`."""
    if shift_labels is not None:
        return shift_labels
    if labels is None:
        raise ValueError("There are no labels: give `labels`, or `shift_labels`.")
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=NONE)


def without_padding(targets: torch.Tensor, mask: Any) -> torch.Tensor:
    r"""
    The same, without those that padding would predict: the first token of a row that is padded on the left.

    Args:
        targets (`torch.LongTensor` of shape `(batch, positions)`): As [`next_tokens`] gives them.
        mask (`torch.Tensor` of shape `(batch, positions)`, *optional*): 0 where a token is padding.

    Raises:
        `ValueError`: If padding itself has a label, or the mask is of another form.
    """
    if mask is None:
        return targets
    if not isinstance(mask, torch.Tensor) or mask.shape != targets.shape:
        raise ValueError(
            f"With labels, `attention_mask` must say of each token whether it is padding, shape {tuple(targets.shape)}, got "
            f"{tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__}."
        )
    mask = mask.to(targets.device) != 0
    padding = torch.nn.functional.pad(~mask[:, 1:], (0, 1)) & (targets != NONE)
    if bool(padding.any()):
        row, column = padding.nonzero()[0].tolist()
        raise ValueError(
            f"The label at row {row}, position {column + 1} is {int(targets[row, column])}, but `attention_mask` says that this is "
            f"padding, which is nothing to learn. Set its label to {NONE}."
        )
    return targets.masked_fill(~mask, NONE)


def beginnings(position_ids: torch.Tensor | None, mask: Any) -> torch.Tensor | None:
    r"""
    Where further texts begin in rows that hold several, `(1 or batch, positions)`; `None` if there are none.

    Args:
        position_ids (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*): Positions, which begin again with each text.
        mask (`torch.Tensor` of shape `(batch, positions)`, *optional*): 0 where a token is padding.

    Raises:
        `ValueError`: If texts follow each other in a row under a mask, with which models do not keep them apart.
    """
    if position_ids is None or position_ids.dim() != 2:
        return None
    begins = torch.nn.functional.pad(position_ids.diff() != 1, (1, 0))
    if mask is not None:
        seen = mask.to(begins.device) != 0
        begins = begins & seen & torch.nn.functional.pad(seen[:, :-1], (1, 0))
    if not bool(begins.any()):
        return None
    if mask is not None:
        row, column = begins.nonzero()[0].tolist()
        raise ValueError(
            f"`position_ids` begin again at row {row}, position {column}, and there is an `attention_mask`: with one, texts in a row see "
            "each other. Leave the mask out (packing without padding), or give each text a row."
        )
    return begins


def without_beginnings(targets: torch.Tensor, begins: torch.Tensor | None) -> torch.Tensor:
    """The same, without the first token of each text, which the text before it would predict."""
    if begins is None:
        return targets
    return targets.masked_fill(torch.nn.functional.pad(begins[:, 1:], (0, 1)).to(targets.device), NONE)
