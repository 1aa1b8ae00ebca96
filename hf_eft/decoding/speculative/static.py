"""Members that read on static caches: every step is of fixed shapes, so that it can be compiled, and on a GPU replayed as one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import StaticCache

from ...members.cache import EFTCache
from ...members.devices import execution_device, is_sharded, sent
from ...members.members import Members
from ...members.ragged import make_even, make_ragged, masks_of, places_of
from ...members.trial import check_ragged
from .drafting import Drafter
from .graphs import Graphs
from .line import Line
from .reading import Begun, Reading
from .scoring import Scoring, joined


class StaticLine:
    r"""
    Where the rows of members that read one prompt stand in their static caches. Its tensors stay where they are, as graphs read them.

    Args:
        line ([`~hf_eft.decoding.speculative.line.Line`]): Where they stand after the prompt.
        rows (`int`): How many there are.
        room (`int`): How many places a row has.
    """

    def __init__(self, line: Line, rows: int, room: int) -> None:
        self.last, self.positions = line.last.clone(), line.positions.clone()  # (..., rows, 1)
        device = self.positions.device
        self.ends = torch.full((rows,), line.columns, device=device)
        self.valid: torch.Tensor | None = None
        if line.mask is not None:
            self.valid = torch.ones(rows, room, dtype=torch.bool, device=device)
            self.valid[:, : line.columns] = line.mask.bool()

    def at(self, ahead: torch.Tensor, count: int) -> torch.Tensor:
        """Positions, `(..., rows, count)`, of tokens that begin `ahead` tokens behind the rows' ends."""
        return torch.minimum(self.positions + ahead + torch.arange(count, device=ahead.device), self.last)

    def settle(self, steps: torch.Tensor) -> None:
        """Every row goes on by so many tokens, `(rows,)`."""
        self.ends.add_(steps)
        self.positions.add_(steps[:, None])


class StaticReading(Reading):
    r"""
    Members that read on static caches. Rows stay where they are: each goes on where it ends, and what it takes back is written over. Rows
    that have ended stay in the batch, as in plain decoding.

    Args:
        members ([`Members`]): Who reads.
        cache ([`EFTCache`]): Their states, which are static.
        lines (`Mapping[str, Line]`): By distinct member, where its rows stand.
        graphs ([`~hf_eft.decoding.speculative.graphs.Graphs`], *optional*): Compiles the steps.

    Raises:
        `ValueError`: If a member cannot read so, with the reason.
    """

    keeps_shapes = True

    def __init__(self, members: Members, cache: EFTCache, lines: Mapping[str, Line], graphs: Graphs | None) -> None:
        super().__init__(members, cache, {})
        for name, member in members.distinct.items():
            check_ragged(name, member.model, cache.members[name], member.device)
        rows = lines[members.main].positions.shape[-2]
        self._room = {name: int(each.layers[0].max_cache_len) for name, each in cache.members.items()}
        by_line = {id(line): StaticLine(line, rows, max(self._room.values())) for line in lines.values()}
        self._lines = {name: by_line[id(line)] for name, line in lines.items()}
        self._ends = {name: make_ragged(each, rows) for name, each in cache.members.items()}
        self.ahead = torch.zeros((), dtype=torch.long, device=self._lines[members.main].ends.device)
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=self.ahead.device)
        self.graphs = graphs

    def read(self, tokens: torch.Tensor, names: Iterable[str], ahead: int) -> dict[str, torch.Tensor]:
        self.ahead.fill_(ahead)
        names = tuple(names)
        if not names:
            return {}
        if self.graphs is None:
            return self.step(names, tokens)
        read: dict[str, torch.Tensor] = self.graphs.run(("read", names), _read, self, names, tokens=tokens.contiguous())
        # Drafts are read one by one, and looked at together.
        return self.graphs.kept(read) if tokens.shape[1] == 1 else read

    def start(self, tokens: torch.Tensor, names: Iterable[str], ahead: int) -> Begun:
        if self.graphs is not None:
            return Begun(None, self.read(tokens, names, ahead))  # a graph is of one accelerator, which works by itself
        self.ahead.fill_(ahead)
        return Begun(self.members.start(tokens, **self._places(tuple(names), tokens.shape[1])))

    def step(self, names: Sequence[str], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """What `read` does, with `ahead` in a tensor: of operations on tensors only."""
        outputs = self.members.step(tokens, use_cache=True, **self._places(names, tokens.shape[1]))
        return {name: output.logits for name, output in outputs.items()}

    def _places(self, names: Sequence[str], count: int) -> dict[str, Any]:
        """Masks and positions of so many tokens, for a step of these members."""
        common, masks = self._lines[self.members.main], {}
        for name in names:
            line, ends, model = self._lines[name], self._ends[name], self.members.distinct[name].model
            ends.copy_(line.ends + self.ahead)
            valid = None if line.valid is None else line.valid[:, : self._room[name]].to(ends.device)
            masks[name] = masks_of(model, places_of(ends, count), valid, self._room[name])
        own = {
            name: {"attention_mask": masks[name], "position_ids": self._lines[name].at(self.ahead, count)}
            for name in names
            if self._lines[name] is not common
        }
        positions = common.at(self.ahead, count)
        return {"attention_mask": masks, "position_ids": positions, "cache": self.cache, "only": names, "own": own}

    def begin(self, token: torch.Tensor, ahead: int) -> None:
        """Have a token, `(rows, 1)`, at hand that stands `ahead` tokens behind the rows' ends."""
        self.token.copy_(token)
        self.ahead.fill_(ahead)

    def drafts_at_once(self, drafter: Drafter, scoring: Scoring) -> bool:
        """Whether a drafting step, the choice of the token included, is one graph."""
        return self.graphs is not None and bool(drafter.members) and scoring.is_plain

    def mark(self) -> None:
        pass  # members with recurrent states are refused

    def settle(self, kept: Sequence[int], tokens: torch.Tensor, read: Mapping[str, int]) -> None:
        steps = sent(kept, tokens.device) + 1
        for line in {id(line): line for line in self._lines.values()}.values():
            line.settle(steps)

    def keep(self, staying: torch.Tensor) -> None:
        raise NotImplementedError("Rows do not leave a static cache.")

    def finish(self) -> None:
        for name, cache in self.cache.members.items():
            self._ends[name].copy_(self._lines[name].ends)
            make_even(cache)


def _read(reading: StaticReading, names: tuple[str, ...], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return reading.step(names, tokens)


def drafted(
    reading: Reading, drafter: Drafter, scoring: Scoring, last: torch.Tensor, block: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]] | None:
    r"""
    Draft without anything between the steps, where that can be done: on static caches that are compiled, and with nothing but the members'
    logits to choose by.

    Args:
        reading ([`~hf_eft.decoding.speculative.reading.Reading`]): The members.
        drafter ([`~hf_eft.decoding.speculative.drafting.Drafter`]): Who drafts.
        scoring ([`~hf_eft.decoding.speculative.scoring.Scoring`]): How it chooses.
        last (`torch.LongTensor` of shape `(rows, 1)`): The token that nobody has read.
        block (`int`): How many tokens.

    Returns:
        `tuple`, *optional*: That token and those drafted, `(rows, block + 1)`; and the drafter's logits by reader, `(rows, block, width)`.
    """
    if not block or not isinstance(reading, StaticReading) or not reading.drafts_at_once(drafter, scoring):
        return None
    reading.begin(last, 0)
    tokens, read = [last], []
    for _ in range(block):
        read.append(_next(reading, drafter, scoring))
        tokens.append(reading.token.clone())
    return torch.cat(tokens, dim=1), joined(read)


def step(reading: Reading, drafter: Drafter, scoring: Scoring, token: torch.Tensor, ahead: int) -> dict[str, torch.Tensor]:
    """As `drafter.step`, by the graph that drafts where there is one."""
    if not isinstance(reading, StaticReading) or not reading.drafts_at_once(drafter, scoring):
        return drafter.step(token, ahead)
    reading.begin(token, ahead)
    return _next(reading, drafter, scoring)


def _next(reading: StaticReading, drafter: Drafter, scoring: Scoring) -> dict[str, torch.Tensor]:
    """Read the token at hand by the graph that drafts, which leaves the one that follows in its place."""
    graphs = cast(Graphs, reading.graphs)
    read = graphs.run(("draft", drafter.name), _draft, reading, drafter, scoring, changes=(reading.token, reading.ahead))
    return graphs.kept(read)


def _draft(reading: StaticReading, drafter: Drafter, scoring: Scoring) -> dict[str, torch.Tensor]:
    """Read the token that is at hand, and put in its place the one that follows."""
    read = reading.step(drafter.members, reading.token)
    reading.token.copy_(scoring.proposed(drafter, read, 0, 1)[:, 0].argmax(-1, keepdim=True))
    reading.ahead.add_(1)
    return read


def can_record(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a member is whole, on this device, and computes there what its modules say, so that a graph of it can be made."""
    quantizer = getattr(model, "hf_quantizer", None)
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    alone = not hooked and execution_device(model) == device and not is_sharded(model)
    return alone and (quantizer is None or bool(quantizer.is_compileable))


def reading_of(members: Members, cache: EFTCache, lines: Mapping[str, Line], graphs: Callable[[], Graphs | None]) -> Reading:
    """How members read on this cache."""
    if isinstance(cache, StaticCache):
        return StaticReading(members, cache, lines, graphs())
    return Reading(members, cache, lines)
