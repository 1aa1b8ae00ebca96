"""Where the rows of a prompt stand in the caches, while they keep different numbers of drafted tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


class Line:
    r"""
    Members that read one prompt stand in one line: what is padding in their caches, and the position of the token that is read next.

    Args:
        mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): 0 where a column of the caches is padding; `None` if nothing is.
        columns (`int`): How many columns the caches have.
        positions (`torch.LongTensor` of shape `(rows, 1)`): Of the token that is read next.
        room (`int`): How many tokens are generated at most. What a row drafts beyond them is dropped, and must not leave the table of
            positions of a model that has one.
    """

    def __init__(self, mask: torch.Tensor | None, columns: int, positions: torch.Tensor, room: int) -> None:
        self.mask, self.columns, self.positions = mask, columns, positions
        self.last = positions + max(0, room - 2)  # the last token that is generated is not read

    def seen(self, more: int) -> torch.Tensor | None:
        """The mask with that many columns more."""
        if self.mask is None:
            return None
        return torch.cat([self.mask, self.mask.new_ones(len(self.mask), more)], dim=1)

    def at(self, start: int, stop: int) -> torch.Tensor:
        """Positions of the tokens from `start` to `stop` behind the rows' ends."""
        return torch.minimum(self.positions + torch.arange(start, stop, device=self.positions.device), self.last)

    def keep(self, staying: torch.Tensor) -> None:
        """Go on with some of the rows only, `(staying,)`."""
        self.mask = None if self.mask is None else self.mask[staying]
        self.positions, self.last = self.positions[staying], self.last[staying]

    def settle(self, kept: torch.Tensor) -> int:
        """
        Every row goes on by what it kept, `(rows,)`, and one token; those that keep less move to the right. Returns how many columns on
        the left are padding in all rows: they are dropped.
        """
        most = int(kept.max())
        shift = most - kept  # (rows,)
        if bool(shift.any()) or self.mask is not None:
            mask = self.mask if self.mask is not None else kept.new_ones(len(kept), self.columns)
            mask = torch.cat([mask, mask.new_ones(len(kept), most + 1)], dim=1)
            source = torch.arange(mask.shape[1], device=mask.device)[None] - shift[:, None]
            self.mask = mask.gather(1, source.clamp(min=0)) * (source >= 0)
        trim = int(self.mask.argmax(-1).min()) if self.mask is not None else 0
        if self.mask is not None and trim:
            self.mask = self.mask[:, trim:]
        self.columns += most + 1 - trim
        self.positions = self.positions + kept[:, None] + 1
        return trim


def apart(lines: Mapping[str, Line], names: Iterable[str], common: Line, start: int, stop: int) -> dict[str, dict[str, Any]]:
    """Masks and positions of those among `names` that do not stand in the common line, for the tokens from `start` to `stop`."""
    return {
        name: {"attention_mask": lines[name].seen(stop), "position_ids": lines[name].at(start, stop)}
        for name in names
        if lines[name] is not common
    }
