"""Where the rows of a prompt stand in the caches, while they keep different numbers of drafted tokens."""

from __future__ import annotations

import torch


class Line:
    r"""
    Members that read one prompt stand in one line: what is padding in their caches, and the position of the token that is read next.

    Args:
        mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): 0 where a column of the caches is padding; `None` if nothing is.
        columns (`int`): How many columns the caches have.
        positions (`torch.LongTensor` of shape `(rows, 1)`): Of the token that is read next.
    """

    def __init__(self, mask: torch.Tensor | None, columns: int, positions: torch.Tensor) -> None:
        self.mask, self.columns, self.positions = mask, columns, positions

    def seen(self, more: int) -> torch.Tensor | None:
        """The mask with that many columns more."""
        if self.mask is None:
            return None
        return torch.cat([self.mask, self.mask.new_ones(len(self.mask), more)], dim=1)

    def at(self, start: int, stop: int) -> torch.Tensor:
        """Positions of the tokens from `start` to `stop` behind the rows' ends."""
        return self.positions + torch.arange(start, stop, device=self.positions.device)

    def settle(self, kept: torch.Tensor, running: torch.Tensor) -> int:
        """
        Every row goes on by what it kept, `(rows,)`, and one token; those that keep less move to the right. Returns how many columns on
        the left are padding in all running rows: they are dropped.
        """
        most = int(kept.max())
        shift = most - kept  # (rows,)
        if bool(shift.any()) or self.mask is not None:
            mask = self.mask if self.mask is not None else kept.new_ones(len(kept), self.columns)
            mask = torch.cat([mask, mask.new_ones(len(kept), most + 1)], dim=1)
            source = torch.arange(mask.shape[1], device=mask.device)[None] - shift[:, None]
            self.mask = mask.gather(1, source.clamp(min=0)) * (source >= 0)
        trim = int(self.mask[running].argmax(-1).min()) if self.mask is not None else 0
        if self.mask is not None and trim:
            self.mask = self.mask[:, trim:]
        self.columns += most + 1 - trim
        # Ended rows go on reading; their positions start over, so that they never leave the table of a model that has one.
        self.positions = torch.where(running[:, None], self.positions + kept[:, None] + 1, 0)
        return trim
