"""What an add-on is told or finds out of a call, beside the tokens: kept by thread, so that no call takes what was meant for another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..members.call import PerThread
from ..members.members import Members
from ..members.sight import Sight, sights_of
from ..prompts import MemberPrompts
from .running import Running

_APART = "Set them in the thread that calls `generate`, or give each thread an `EFTLogitsProcessor` of its own."


@dataclass(frozen=True, eq=False)
class Given:
    """The mask of a call's prompts, and the prompts of members that have their own."""

    attention_mask: torch.Tensor | None
    member_inputs: Mapping[str, Mapping[str, torch.Tensor]] | None
    prompts: MemberPrompts
    after_unused: bool = False  # whether it took the place of another that no call had used

    def says_the_same(self, other: Given) -> bool:
        """Whether two say the same to a call."""
        mine, theirs = self.attention_mask, other.attention_mask
        same = mine is theirs or (mine is not None and theirs is not None and torch.equal(mine, theirs))
        return same and self.member_inputs is other.member_inputs


class GivenByThread:
    r"""
    Whoever calls takes what this thread was told last. A thread that was told nothing takes what was said last in any thread, where
    that can only be meant for it; otherwise it is refused.

    Args:
        first ([`Given`]): What holds as long as nothing else is said.
    """

    def __init__(self, first: Given) -> None:
        self._first = self._last = first
        self._unused = {name for name in ("attention_mask", "member_inputs") if getattr(first, name) is not None}
        self._own = PerThread()
        self._taken = PerThread()  # what the call that is running here began with, and its prompt

    @property
    def current(self) -> Given:
        """What holds in this thread."""
        return self._last if self._own.value is None else self._own.value

    def apart(self) -> GivenByThread:
        """The same as it holds in this thread, for a copy."""
        return GivenByThread(dataclasses.replace(self.current, after_unused=False))

    def replace(self, name: str, value: Any, **more: Any) -> None:
        """Say something else, from this thread."""
        before = self._first if self._own.value is None else self._own.value
        lost = name in self._unused or (self._last.after_unused and bool(self._unused))
        self._last = self._own.value = dataclasses.replace(before, **{name: value}, **more, after_unused=lost)
        self._unused.add(name)

    def take(self, input_ids: torch.Tensor) -> Given:
        """What a step of a call is to heed that reads `input_ids`, `(rows, length)`."""
        last, own = self._last, self._own.value
        if own is not None:
            if own is last:
                self._unused.clear()
            return own
        if last.after_unused:
            raise ValueError(
                "Another thread set the add-on's `attention_mask` or `member_inputs` twice before a call used them: which are this call's? "
                f"{_APART}"
            )
        if self._taken.value is not None:
            before, prompt = self._taken.value
            if goes_on(input_ids, prompt):
                if not before.says_the_same(last):
                    raise ValueError(
                        "Another thread replaced the add-on's `attention_mask` or `member_inputs` while this call was running. "
                        f"{_APART}"
                    )
                return before
        self._unused.clear()
        self._taken.value = last, input_ids.clone()
        return last


def goes_on(input_ids: torch.Tensor, prompt: torch.Tensor) -> bool:
    """Whether rows begin with those of `prompt`, one by one."""
    rows, length = prompt.shape
    return input_ids.shape[0] == rows and input_ids.shape[1] >= length and torch.equal(input_ids[:, :length], prompt)


@dataclass
class Begun:
    """The first tokens that a call asked about, what was given for it, where those tokens are padding, and how far it has come."""

    input_ids: torch.Tensor
    given: Given
    pad: int | None
    mask: torch.Tensor
    call: Running | None
    pictures: Mapping[str, Any]  # of the call
    longest: int = 0
    sights: dict[str, dict[str, Sight]] = field(default_factory=dict)  # by the first of the members that read one prompt

    def mask_of(self, input_ids: torch.Tensor) -> torch.Tensor:
        """0 where tokens are padding: what follows the prompts is none."""
        return torch.nn.functional.pad(self.mask, (0, input_ids.shape[1] - self.mask.shape[1]), value=1)

    def leads_to(self, input_ids: torch.Tensor, given: Given, pad: int | None, call: Running | None) -> bool:
        """Whether these tokens are of the same call: one step further at most. What follows a prompt is no padding, whatever it is."""
        return (
            given is self.given
            and pad == self.pad
            and (call is None if self.call is None else self.call.is_the_same(call))
            and input_ids.shape[1] <= self.longest + 1
            and goes_on(input_ids, self.input_ids)
        )

    def seen_by(self, members: Members, name: str) -> dict[str, Sight]:
        """What members see that read one prompt, of which `name` is the first."""
        pictures: Mapping[str, Any]
        if name not in self.sights:
            rows, own = len(self.input_ids), self.given.prompts.by_name
            if name in own:
                ids, mask, pictures = own[name]
                expand = rows // len(ids)
            else:
                prompts = self.call.prompts if self.call is not None else None
                expand = rows // (prompts or rows)
                ids, mask, pictures = self.input_ids[::expand], self.mask[::expand], self.pictures
            every = None if mask is None or bool(mask.all()) else mask
            self.sights[name] = sights_of(members, ids, every, pictures, {}, expand=expand)
        return self.sights[name]
