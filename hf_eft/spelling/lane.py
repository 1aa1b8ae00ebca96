"""Rows that go on by one token for each symbol: read in tensors, without a state for each row and step until somebody asks for one."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .covers import Covers
from .lexicon import taken
from .states import Batch, Place, Spans, masked
from .sums import tables_of
from .texts import Context, State

NONE = -1  # of an id that is no symbol, or one that no token is spelled as
SEVERAL = -2  # of an id that is several symbols


@dataclass(frozen=True)
class _Step:
    """A step of all rows: what they read, what follows it, how probable the texts are, and of which nothing is known."""

    ids: torch.Tensor  # (rows, 1)
    tables: torch.Tensor  # (rows, width)
    log_probs: torch.Tensor  # (rows, 1)
    known: torch.Tensor  # (rows, 1)


class Lane:
    r"""
    Rows of one batch whose texts are each covered by one token sequence, of a model whose tokens are single symbols.

    Args:
        covers ([`Covers`]): What reads.
        contexts (`Sequence[Context]`): The token sequence of each row, which has the row of the batch of this number.
        tokens (`torch.LongTensor` of shape `(ids,)`): The token of each id; below 0 where there is none.
        columns (`torch.LongTensor` of shape `(ids,)`): The column of each id in what the lexicon says of the next symbol.
        keep (`int`): How many steps are remembered, the latest.
        era (`object`): What the states belong to: those of another one are no longer good.
    """

    def __init__(
        self,
        covers: Covers,
        contexts: Sequence[Context],
        tokens: torch.Tensor,
        columns: torch.Tensor,
        keep: int,
        era: object,
    ) -> None:
        self._covers, self._tokens, self.era = covers, tokens, era
        self._ids, self._composed = columns, covers.lexicon.composed(columns)
        self._batch: Batch = contexts[0].place.batch
        self._spans: list[Spans] = [context.place.spans for context in contexts]
        self._lengths = [context.place.length for context in contexts]
        self._columns = self._batch.columns
        self._parts = contexts[0].place.parts
        self._steps: deque[_Step] = deque(maxlen=keep)
        self._read: list[torch.Tensor] = []
        self._tables = tables_of(contexts)
        self._log_probs = self._tables.new_tensor([[context.log_prob] for context in contexts], dtype=torch.float64)
        self._known = torch.ones(len(contexts), 1, dtype=torch.bool)
        self._all_known = True
        self._rows = list(range(len(contexts)))
        self._placed = masked(self._batch, self._rows, self._spans, [1] * len(contexts))

    @classmethod
    def of(
        cls,
        covers: Covers,
        states: Sequence[State],
        tokens: torch.Tensor,
        columns: torch.Tensor,
        keep: int,
        era: object,
    ) -> Lane | None:
        """A lane for texts, if they are such."""
        if not covers.pads or not all(len(state.covers) == 1 for state in states):
            return None
        contexts = [state.covers[0][0] for state in states]
        batch = contexts[0].place.batch
        in_order = batch.rows == len(contexts) and all(
            context.place.batch is batch and context.place.row == row and context.place.spans[-1][1] == batch.columns
            for row, context in enumerate(contexts)
        )
        return cls(covers, contexts, tokens, columns, keep, era) if in_order else None

    @property
    def has_begun(self) -> bool:
        return bool(self._read)

    def step(self, ids: torch.Tensor) -> torch.Tensor | None:
        """
        Read an id in each row, `(rows, 1)`. Returns the log-probs of the next id, `(rows, ids)`, all of them equal where nothing is known;
        `None` if an id is several symbols, so that the lane ends before it.
        """
        tokens = self._tokens.take(ids)
        lowest = int(tokens.min())
        if lowest == SEVERAL:
            return None
        weights = self._tables.gather(1, tokens.clamp(min=0) if lowest == NONE else tokens)
        if not self._all_known or lowest == NONE or float(weights.min()) == -math.inf:
            known = (tokens != NONE) & (weights > -math.inf)
            self._known, self._all_known = self._known & known, False
            tokens = torch.where(self._known, tokens, 0)
        self._log_probs = self._log_probs + weights
        logits = self._covers.run(self._batch, tokens, self._placed, 1, self._rows)
        self._batch.columns += 1
        if self._placed["attention_mask"] is not None:
            mask, positions = self._placed["attention_mask"], self._placed["position_ids"]
            self._placed = {"attention_mask": torch.nn.functional.pad(mask, (0, 1), value=1), "position_ids": positions + 1}
        self._tables = self._covers.lexicon.read(logits)[:, 0]
        self._steps.append(_Step(ids, self._tables, self._log_probs, self._known))
        self._read.append(ids)
        self._covers.cost.symbols += len(ids)
        self._covers.cost.tokens += len(ids)
        said = self._said()
        if self._all_known:
            return said
        return torch.where(self._known, said, taken(said.new_zeros(1, self._covers.lexicon.symbols + 1), self._ids))

    def _said(self) -> torch.Tensor:
        """The log-probs of the next id, if all is known, `(rows, ids)`."""
        lexicon = self._covers.lexicon
        if self._composed is None:
            return taken(lexicon.next(self._tables), self._ids)
        return lexicon.taken(self._tables, self._composed)

    def settle(self, texts: Sequence[bytes], keep: Callable[[int, bytes, State], None]) -> None:
        r"""
        Make the states of the steps that are remembered.

        Args:
            texts (`Sequence[bytes]`): What the rows had read when the lane began, ids as int32.
            keep (`Callable`): Is given a row, its text and the state after it.
        """
        first = len(self._read) - len(self._steps)
        so_far = [
            b"".join([text, *(ids[row].int().numpy().tobytes() for ids in self._read[:first])])
            for row, text in enumerate(texts)
        ]
        for i, step in enumerate(self._steps, first + 1):
            log_probs, known = step.log_probs[:, 0].tolist(), step.known[:, 0].tolist()
            for row, content in enumerate(step.ids.int().numpy()):
                so_far[row] += content.tobytes()
                spans, state = self._spans[row], State([])
                if known[row]:
                    columns = (*spans[:-1], (spans[-1][0], self._columns + i))
                    place = Place(self._batch, row, self._lengths[row] + i, columns, self._parts)
                    state.covers.append((Context(log_probs[row], step.tables, row, place), self._covers.lexicon.root))
                keep(row, so_far[row], state)
