"""Tokens that a member was given and has not read: it was left out of steps, and reads them in one block once it is asked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .padding import readable


@dataclass(frozen=True, eq=False)
class Unread:
    r"""
    What a member has missed, behind what its cache holds.

    Args:
        input_ids (`torch.LongTensor` of shape `(rows, tokens)`): The tokens.
        position_ids (`torch.LongTensor` of shape `(1 or rows, tokens)`, *optional*): Where they stand, if that was said.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None

    @property
    def count(self) -> int:
        """How many tokens of a row."""
        return self.input_ids.shape[1]

    def followed_by(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> Unread:
        """These, and more behind them."""
        positions = None
        if self.position_ids is not None and position_ids is not None:
            rows = max(len(self.position_ids), len(position_ids))
            both = (each.to(input_ids.device).expand(rows, -1) for each in (self.position_ids, position_ids))
            positions = torch.cat([*both], dim=-1)
        return Unread(torch.cat([self.input_ids.to(input_ids.device), input_ids], dim=1), positions)

    def before(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a member is given in a step, with these before it. (The mask covers them already.)"""
        all_of_it = self.followed_by(given["input_ids"], given["position_ids"])
        return {**given, "input_ids": all_of_it.input_ids, "position_ids": all_of_it.position_ids}

    def alone(self, given: Mapping[str, Any], rows: int) -> dict[str, Any] | None:
        """
        What [`~hf_eft.members.member.Member.forward`] is given to read these apart from what follows, because only one of both has its
        positions said; `None` if both go in one block. The member has that many `rows` of embeddings.
        """
        if (self.position_ids is None) == (given["position_ids"] is None):
            return None
        mask = given["attention_mask"]
        before = None if mask is None else mask[:, : mask.shape[1] - given["input_ids"].shape[1]]
        return {
            "input_ids": readable(self.input_ids, before, {"": rows}),
            "attention_mask": before,
            "position_ids": self.position_ids,
            "inputs_embeds": None,
            "use_cache": True,
            "logits_to_keep": 1,
            "extra": {},
        }

    def kept(self, logits_to_keep: int | torch.Tensor, fresh: int) -> int | torch.Tensor:
        """Which logits to keep of all that is read, for those of the last `fresh` tokens that are asked for."""
        if isinstance(logits_to_keep, int):
            return logits_to_keep or fresh
        return logits_to_keep + self.count

    def select(self, rows: torch.Tensor) -> Unread:
        """Those of these rows, `(rows,)`."""
        positions = self.position_ids
        if positions is not None and len(positions) > 1:
            positions = positions.index_select(0, rows.to(positions.device))
        return Unread(self.input_ids.index_select(0, rows.to(self.input_ids.device)), positions)

    def repeat(self, times: int) -> Unread:
        """Those of as many rows in the place of each."""
        positions = self.position_ids
        if positions is not None and len(positions) > 1:
            positions = positions.repeat_interleave(times, dim=0)
        return Unread(self.input_ids.repeat_interleave(times, dim=0), positions)

    def without(self, last: int) -> Unread | None:
        """Those before the last so many; `None` if none is left."""
        left = self.count - last
        if left <= 0:
            return None
        return Unread(self.input_ids[:, :left], None if self.position_ids is None else self.position_ids[:, :left])
