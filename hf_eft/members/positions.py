"""Positions that a model's own way of counting gave to a prompt, and what follows from them for the tokens behind it."""

from __future__ import annotations

import torch


class Positions:
    r"""
    Where the tokens of a prompt stand for a member, and those that follow, one after the other. (Tokens of a picture may share a place, or
    have one on each of several axes.)

    Args:
        read (`torch.LongTensor` of shape `(..., rows, length)`): Those of the prompt.
    """

    def __init__(self, read: torch.Tensor) -> None:
        self.read = read

    @property
    def length(self) -> int:
        return self.read.shape[-1]

    def up_to(self, length: int, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Positions of the first `length` tokens, `(..., rows, length)`; those that the mask, `(rows, length)`, leaves out do not count."""
        count = length - self.length
        if attention_mask is None:
            more = torch.arange(1, count + 1, device=self.read.device)
        else:
            more = attention_mask[:, self.length : length].to(self.read.device).cumsum(-1)
        return torch.cat([self.read, self.read[..., -1:] + more], dim=-1)[..., :length]

    def select(self, rows: torch.Tensor) -> Positions:
        """Those of these rows, `(rows,)`; the same where they are the same for all."""
        if self.read.shape[-2] == 1:
            return self
        return Positions(self.read.index_select(-2, rows.to(self.read.device)))

    def repeat(self, times: int) -> Positions:
        """Those of as many rows in the place of each."""
        return self if self.read.shape[-2] == 1 else Positions(self.read.repeat_interleave(times, dim=-2))
