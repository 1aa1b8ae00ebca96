"""Reads texts symbol by symbol, and keeps the token sequences that cover them (arXiv 2412.03719)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..members.checks import check_finite
from ..members.member import Member
from ..members.trial import reads_padding
from .lexicon import Lexicon, Node
from .states import Batch, Place, gone_on, masked, together
from .sums import measure
from .texts import Context, Spare, State, entries, log_sum

_SPARES = 4  # covers left out that are remembered, the most likely ones
_SPARE_SYMBOLS = 16  # and for how long


@dataclass
class Cost:
    """What was run: symbols answered for, sequences continued by tokens, the tokens read, and the forwards that did it."""

    symbols: int = 0
    covers: int = 0
    tokens: int = 0
    forwards: int = 0


class Covers:
    r"""
    Reads texts symbol by symbol.

    Args:
        model (`PreTrainedModel`): The model of tokens.
        lexicon ([`Lexicon`]): Its tokens.
        limit (`int`, *optional*): How many covers a symbol may add; `None` for all, which is exact.
        threshold (`float`): The share of the text's probability below which a cover is not added.
    """

    def __init__(self, model: Any, lexicon: Lexicon, limit: int | None, threshold: float) -> None:
        self.member = Member.of(type(model).__name__, model)
        self.lexicon = lexicon
        self.limit = limit
        self.threshold = threshold
        self.cost = Cost()

    @functools.cached_property
    def pads(self) -> bool:
        """Whether sequences of different lengths can be read in one forward, the shorter ones behind padding."""
        model = self.member.model
        layers = DynamicCache(config=model.config).layers
        return all(type(layer) is DynamicLayer for layer in layers) and reads_padding(model, self.member.device)

    @functools.cached_property
    def _weights(self) -> int:
        return sum(weight.numel() for weight in self.member.model.parameters())

    @torch.no_grad()
    def read(
        self, after: Sequence[Context | None], tokens: Sequence[Sequence[int]], log_probs: Sequence[float]
    ) -> list[Context]:
        """Continue contexts by tokens, as many as can be in one forward. `None` is the empty context."""
        read: dict[int, Context] = {}
        groups: dict[Any, list[int]] = {}
        for i, (context, ids) in enumerate(zip(after, tokens, strict=True)):
            if context is not None and len(ids) == 1 and (known := context.ahead.get(ids[0])) is not None:
                read[i] = replace(known, log_prob=log_probs[i])
                continue
            length, count = context.place.length if context else 0, len(ids)
            groups.setdefault((bool(length) and count) if self.pads else (length, count), []).append(i)
        for group in groups.values():
            tables, places = self._forward([after[i] for i in group], [tokens[i] for i in group])
            read |= {i: Context(log_probs[i], tables[0], row, places[row]) for row, i in enumerate(group)}
        return [read[i] for i in range(len(after))]

    @torch.no_grad()
    def read_ahead(self, tokens: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Context]:
        """
        Read token sequences up to so many tokens before their ends. Where states can be cut back, the rest is read in the same forward, and
        found if a text goes on with it.
        """
        if not tokens or not self.pads:
            begun = [ids[: len(ids) - count] for ids, count in zip(tokens, counts, strict=True)]
            return self.read([None] * len(begun), begun, [0.0] * len(begun))
        tables, places = self._forward([None] * len(tokens), tokens, 1 + max(counts))
        contexts = []
        for row, (ids, count, place) in enumerate(zip(tokens, counts, places, strict=True)):
            context = Context(0.0, tables[0], row, place)
            for back in range(1, count + 1):
                context = Context(0.0, tables[back], row, place.earlier(back), {ids[-back]: context})
            contexts.append(context)
        return contexts

    def _forward(
        self, after: Sequence[Context | None], tokens: Sequence[Sequence[int]], kept: int = 1
    ) -> tuple[list[torch.Tensor], list[Place]]:
        """
        One forward: of the empty context, or of contexts that are continued by one number of tokens. Returns log-probs behind the last
        token, the one before and so on, `(rows, width)` each, and where the states are.
        """
        places = [None if context is None else context.place for context in after]
        batch, rows, spans = together(places, self.member.model.config, self.pads, self._weights)
        counts = [len(ids) for ids in tokens]
        read = np.zeros((batch.rows, max(counts)), dtype=np.int64)
        for row, ids in zip(rows, tokens, strict=True):
            read[row, max(counts) - len(ids) :] = ids
        logits = self.run(batch, torch.from_numpy(read), masked(batch, rows, spans, counts), kept, rows)
        self.cost.tokens += sum(counts)
        behind = self.lexicon.read(logits).unbind(1)
        return list(reversed(behind)), gone_on(batch, rows, spans, counts)

    def run(
        self, batch: Batch, tokens: torch.Tensor, placed: Mapping[str, torch.Tensor | None], kept: int, rows: Sequence[int]
    ) -> torch.Tensor:
        r"""
        A forward of the model.

        Args:
            batch ([`Batch`]): Where the states are; extended in place.
            tokens (`torch.LongTensor` of shape `(batch rows, positions)`): What is read.
            placed (`Mapping[str, torch.Tensor]`): `attention_mask` and `position_ids`, or `None` for each.
            kept (`int`): How many positions are asked for, the last.
            rows (`Sequence[int]`): And of which rows.

        Returns:
            `torch.Tensor`: Their logits, `(rows, kept, width)`, float32; float64 where the model is.
        """
        outputs = self.member.forward(
            input_ids=tokens, inputs_embeds=None, **placed, cache=batch.cache, use_cache=True, logits_to_keep=kept, extra={}
        )
        self.cost.forwards += 1
        self.cost.covers += len(rows)
        logits = outputs.logits if rows == list(range(batch.rows)) else outputs.logits[rows]
        check_finite(logits, self.member.name)
        logits = logits[:, -kept:].cpu()
        return logits if logits.dtype == torch.float64 else logits.float()

    def start(self, contexts: Sequence[Context]) -> list[State]:
        """Texts that end where a token does."""
        return [State([(context, self.lexicon.root)]) for context in contexts]

    def advance(self, states: Sequence[State], following: Sequence[int]) -> list[State]:
        """Append one symbol to every text. Nothing is known of what follows a special id (below 0), such as the end of a text."""
        self.cost.symbols += len(states)
        measure(states, self.lexicon)
        grown, starting = self._grown(states, following)
        if starting:
            contexts = self.read(
                [spare.context for _, spare in starting],
                [[spare.token] for _, spare in starting],
                [spare.log_prob for _, spare in starting],
            )
            for (after, _), context in zip(starting, contexts, strict=True):
                after.covers.append((context, self.lexicon.root))
        measure(grown, self.lexicon)
        return [after if after.covers or not after.spares else self._revived(after) for after in grown]

    def _grown(self, states: Sequence[State], following: Sequence[int]) -> tuple[list[State], list[tuple[State, Spare]]]:
        """The texts with the covers that go on with a symbol, and for these texts the tokens that end with it and are to be read."""
        known = [symbol >= 0 and state.said is not None for state, symbol in zip(states, following, strict=True)]
        asked = [(s.said, s.row, symbol) for s, symbol, is_known in zip(states, following, known, strict=True) if is_known]
        shares = iter(entries(cast(list[tuple[torch.Tensor, int, int]], asked)))
        ways = [
            self._ways(state, symbol) if each else ([], [])
            for state, symbol, each in zip(states, following, known, strict=True)
        ]
        weights = iter(entries([(context.tables, context.row, token) for _, ending in ways for context, token in ending]))
        grown: list[State] = []
        starting: list[tuple[State, Spare]] = []
        for state, symbol, each, (stay, ending) in zip(states, following, known, ways, strict=True):
            if not each:
                grown.append(State([], [], state.left_out))
                continue
            total = state.log_prob + next(shares)
            spares = [Spare(context.log_prob + next(weights), context, token) for context, token in ending]
            kept, left = self._chosen([spare for spare in spares if spare.log_prob > -math.inf], total)
            after = State(stay, *self._left_out(state, symbol, left, total))
            grown.append(after)
            starting += [(after, spare) for spare in kept]
        return grown, starting

    def _ways(self, state: State, symbol: int) -> tuple[list[tuple[Context, Node]], list[tuple[Context, int]]]:
        """The covers whose token goes on behind a symbol, and the tokens that end with it."""
        stay: list[tuple[Context, Node]] = []
        ending: list[tuple[Context, int]] = []
        for context, node in state.covers:
            child = node.children.get(symbol)
            if child is None:
                continue
            if child.open < child.high:
                stay.append((context, child))
            ending += [(context, token) for token in self.lexicon.ids[child.low : child.open]]
        return stay, ending

    def _left_out(self, state: State, symbol: int, left: Sequence[Spare], total: float) -> tuple[list[Spare], float, float]:
        """What is left out of a text behind a symbol: the likeliest spares, the log of a bound, and the share that is kept."""
        if not left and not state.spares:
            return [], state.left_out, state.kept
        older = [
            Spare(spare.log_prob, spare.context, spare.token, (*spare.tail, symbol))
            for spare in state.spares
            if len(spare.tail) < _SPARE_SYMBOLS
        ]
        spares = sorted([*left, *older], key=lambda spare: -spare.log_prob)[:_SPARES]
        share = sum(math.exp(spare.log_prob - total) for spare in left)
        left_out = log_sum([state.left_out, *(spare.log_prob for spare in left)])
        return spares, left_out, state.kept * max(0.0, 1 - share)

    def _chosen(self, ending: list[Spare], total: float) -> tuple[list[Spare], list[Spare]]:
        """The tokens that are read, of those that end, and those that are left out."""
        if len(ending) > 1:
            ending.sort(key=lambda spare: -spare.log_prob)
        least = total + (math.log(self.threshold) if self.threshold else -math.inf)
        kept = [spare for spare in ending[: self.limit] if spare.log_prob >= least]
        return kept, ending[len(kept) :]

    def _revived(self, state: State) -> State:
        """No kept cover leads to this text: the most likely one that was left out and does."""
        for i, spare in enumerate(state.spares):
            [context] = self.read([spare.context], [[spare.token]], [spare.log_prob])
            [revived] = self.start([context])
            revived.left_out = state.left_out
            revived.kept = state.kept * math.exp(spare.log_prob - log_sum([each.log_prob for each in state.spares]))
            for symbol in spare.tail:
                [revived] = self.advance([revived], [symbol])
            if revived.covers:
                others = [*revived.spares, *(other for other in state.spares[i + 1 :])]
                revived.spares = sorted(others, key=lambda other: -other.log_prob)[:_SPARES]
                return revived
        return state
