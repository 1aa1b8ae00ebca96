"""Where the rows of a prompt stand in the caches, while they keep different numbers of drafted tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch

from ...members.members import Members
from ...members.sight import Sight
from ...prompts import MemberPrompts, positions_of


class Line:
    r"""
    Members that read one prompt stand in one line: what is padding in their caches, and the position of the token that is read next.

    Args:
        mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): 0 where a column of the caches is padding; `None` if nothing is.
        columns (`int`): How many columns the caches have.
        positions (`torch.LongTensor` of shape `(..., rows, 1)`): Of the token that is read next.
        room (`int`): How many tokens are generated at most. What a row drafts beyond them is dropped, and must not leave the table of
            positions of a model that has one.
    """

    def __init__(self, mask: torch.Tensor | None, columns: int, positions: torch.Tensor, room: int) -> None:
        self.mask, self.columns, self.positions, self.room = mask, columns, positions, room
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
        self.positions, self.last = self.positions[..., staying, :], self.last[..., staying, :]

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


def lines_of(
    common: Line, members: Members, prompts: MemberPrompts | None, sights: Mapping[str, Sight], prompt: torch.Tensor, room: int
) -> dict[str, Line]:
    r"""
    Where every distinct member stands after its prompt.

    Args:
        common ([`Line`]): Where those stand that read the prompt of the call and no picture.
        members ([`~hf_eft.members.members.Members`]): The members.
        prompts ([`~hf_eft.prompts.MemberPrompts`], *optional*): Those of members that have their own.
        sights (`Mapping[str, Sight]`): What members see, by name.
        prompt (`torch.LongTensor` of shape `(rows, length)`): The prompt of the call.
        room (`int`): How many tokens will follow at most.

    Raises:
        `ValueError`: If a member cannot be told where drafted tokens stand.
    """
    lines = dict.fromkeys(members.distinct, common)
    for name in prompts.names if prompts is not None else ():
        _, own = cast(MemberPrompts, prompts).followed_by(name, prompt[:, :0])
        lines[name] = Line(own, own.shape[1], positions_of(own)[:, -1:] + 1, room)
    made: list[Line] = []
    for name, sight in sights.items():
        line = lines[name]
        if (positions := sight.next_positions(len(prompt))) is not None:
            positions = positions.to(prompt.device)
            same = (
                each for each in (line, *made)
                if each.mask is line.mask and each.columns == line.columns and _equal(each.positions, positions)
            )  # fmt: skip
            lines[name] = next(same, None) or Line(line.mask, line.columns, positions, room)
            made.append(lines[name])
        elif "position_ids" in sight.member.accepts:
            raise ValueError(
                f"The member {name!r} ({type(sight.member.model).__name__}) counts its positions itself beside pictures, and cannot be "
                "told those of drafted tokens. Decode without an assistant and without a `seed`."
            )
    return lines


def _equal(mine: torch.Tensor, other: torch.Tensor) -> bool:
    return mine.shape == other.shape and torch.equal(mine, other)
