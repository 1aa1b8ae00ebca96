"""Several texts in a row without padding: whether a member keeps them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .heads import Halves


def check_packed(
    halves: Halves, states: torch.Tensor, begins: torch.Tensor, read: Callable[..., Any], input_ids: torch.Tensor
) -> None:
    r"""
    Raise if a member's states of a text depend on the texts before it in the row. It is tried once: the last text that follows another is
    read alone.

    Args:
        halves ([`Halves`]): The member.
        states (`torch.Tensor` of shape `(batch, positions, width)`): Its states.
        begins (`torch.BoolTensor` of shape `(1 or batch, positions)`): Where further texts begin.
        read (`Callable`): Has the member read other `input_ids` and `position_ids`.
        input_ids (`torch.LongTensor` of shape `(batch, positions)`): The texts.

    Raises:
        `ValueError`: Naming the member.
    """
    if halves.keeps_apart:
        return
    row, start = begins.nonzero()[-1].tolist()
    text = input_ids[row : row + 1, start:]
    positions = torch.arange(text.shape[1], device=text.device)[None]
    with torch.no_grad():
        alone = halves.states(lambda keep: read(keep, input_ids=text, position_ids=positions))
    packed = states.detach()[row : row + 1, start:]
    scale = float(alone.abs().max())
    if not torch.allclose(packed, alone, rtol=0, atol=_CLOSE * scale):
        raise ValueError(
            f"The member {halves.name!r} ({type(halves.model).__name__}) does not keep texts apart that follow each other in a row: what "
            "it says of one depends on those before it. Give each text a row (`padding_free=False`, `packing=False`)."
        )
    halves.keeps_apart = True


_CLOSE = (
    0.02  # of the largest state: bfloat16 rounds to 0.004 of a number, and texts that see each other differ by a third and more
)
