"""How members read tokens behind the rows of a call, and forget those that were drafted in vain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ...members.beside import Started
from ...members.cache import EFTCache
from ...members.devices import sent
from ...members.members import Members
from ...members.roll_back import Mark
from .line import Line, apart
from .recurrent import read_again


class Begun:
    r"""
    Members that have begun to read; called, their logits, `(rows, n, width)`, by name.

    Args:
        started ([`~hf_eft.members.beside.Started`], *optional*): What is waited for.
        logits (`Mapping[str, torch.Tensor]`, *optional*): What is there already.
    """

    def __init__(self, started: Started | None, logits: Mapping[str, torch.Tensor] | None = None) -> None:
        self._started, self._logits = started, dict(logits or {})

    def __call__(self) -> dict[str, torch.Tensor]:
        outputs = {} if self._started is None else self._started.outputs()
        return self._logits | {name: output.logits for name, output in outputs.items()}

    def abandon(self) -> None:
        """Wait until nobody reads any more."""
        if self._started is not None:
            self._started.abandon()


class Reading:
    r"""
    Members that read on caches which grow. Rows that keep fewer tokens than others are moved to the right; rows that have ended leave.

    Args:
        members ([`Members`]): Who reads.
        cache ([`EFTCache`]): Their states.
        lines (`Mapping[str, Line]`): By distinct member, where its rows stand. Members with one prompt share theirs.
    """

    #: Whether every step is of few shapes: rows that have ended stay in the batch, and no block is cut short.
    keeps_shapes = False

    def __init__(self, members: Members, cache: EFTCache, lines: Mapping[str, Line]) -> None:
        self.members, self.cache, self.lines = members, cache, lines
        self._marks: dict[str, Mark] = {}

    def read(self, tokens: torch.Tensor, names: Iterable[str], ahead: int) -> dict[str, torch.Tensor]:
        """
        Let these distinct members read tokens, `(rows, n)`, that begin `ahead` tokens behind the rows' ends; returns their logits,
        `(rows, n, width)`, by name.
        """
        outputs = self.members.step(tokens, use_cache=True, **self._asked(tuple(names), ahead, ahead + tokens.shape[1]))
        return {name: output.logits for name, output in outputs.items()}

    def start(self, tokens: torch.Tensor, names: Iterable[str], ahead: int) -> Begun:
        """As `read`, which comes back while devices are at work. What is begun must be called, or abandoned."""
        return Begun(self.members.start(tokens, **self._asked(tuple(names), ahead, ahead + tokens.shape[1])))

    def _asked(self, names: tuple[str, ...], ahead: int, stop: int) -> dict[str, Any]:
        """Masks and positions for a step of these members."""
        common = self.lines[self.members.main]
        return {
            "attention_mask": common.seen(stop), "position_ids": common.at(ahead, stop), "cache": self.cache, "only": names,
            "own": apart(self.lines, names, common, ahead, stop),
        }  # fmt: skip

    def mark(self) -> None:
        """Remember the recurrent states of every member that has any, as they are before a block."""
        self._marks = {name: Mark(self.cache.members[name]) for name in self.members.stateful}

    def settle(self, kept: Sequence[int], tokens: torch.Tensor, read: Mapping[str, int]) -> None:
        r"""
        Let every member forget what was rejected.

        Args:
            kept (`Sequence[int]`): How many drafted tokens each row keeps.
            tokens (`torch.LongTensor` of shape `(rows, block + 1)`): What was read: the token before the draft, and the draft.
            read (`Mapping[str, int]`): By distinct member, how many of these it has read.
        """
        counts = sent(kept, tokens.device)
        for name, mark in self._marks.items():
            whole = [n + 1 for n in kept]
            read_again(
                self.members.distinct[name], self.cache.members[name], mark, tokens[:, : read[name]], whole, self.lines[name]
            )
        self._marks = {}
        trims = {id(line): line.settle(counts) for line in self._distinct_lines()}
        most = max(kept)
        shift = most - counts if len(set(kept)) > 1 else None
        drops = {name: read[name] - most - 1 for name in self.members.distinct}
        self.cache.roll_back(drops, shift, {name: trims[id(self.lines[name])] for name in drops})
        # Members that draft and members that look count apart: what all have read is what the caches hold.
        self.cache.seen_tokens = self.lines[self.members.main].columns

    def keep(self, staying: torch.Tensor) -> None:
        """Go on with some of the rows only, `(staying,)`."""
        self.cache.reorder_cache(staying)  # `batch_select_indices` leaves the states of convolutions as they are
        for line in self._distinct_lines():
            line.keep(staying)

    def finish(self) -> None:
        """Leave the states as later calls take them."""

    def _distinct_lines(self) -> list[Line]:
        return list({id(line): line for line in self.lines.values()}.values())
