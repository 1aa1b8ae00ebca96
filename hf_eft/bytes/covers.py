"""What a model of tokens says about the next byte: sums over the token sequences that cover a text (arXiv 2412.03719)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..members.checks import check_finite
from ..members.member import Member
from ..members.trial import reads_padding
from .states import apart, together
from .tokens import BYTES, Lexicon, Node, grouped_log_sum, masses

END = BYTES  # the index of the end of text among what may come next
_SPARES = 4  # covers left out that are remembered, the most likely ones
_SPARE_BYTES = 16  # and for how long
_NOTHING = torch.full((BYTES + 1,), -math.inf, dtype=torch.float64)


@dataclass(eq=False)
class Context:
    """A token sequence that was read: its log-probability, what the model says follows it, and the model's states."""

    log_prob: float
    table: torch.Tensor  # (tokens,), in the lexicon's order
    first: torch.Tensor  # (256,), the log-probs of the next byte, float64
    end: float
    length: int
    states: tuple[Any, ...]


@dataclass(eq=False)
class Spare:
    """A token behind a context that was not read: what it weighs, and the bytes of the text since."""

    log_prob: float
    context: Context
    token: int
    tail: tuple[int, ...] = ()


def log_sum(values: Sequence[float]) -> float:
    """The log of the sum of what these are the logs of."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values)) if top > -math.inf else top


class Missing(NamedTuple):
    r"""
    The share of a text's probability that was left out; by so much, in total variation, is the distribution of the next byte wrong.

    Args:
        estimate (`float`): What it is if covers that were left out would have lost as much by each byte since as those that were kept.
        bound (`float`): What it is at most: if they would have lost nothing. It goes to 1 as a text grows.
    """

    estimate: float
    bound: float


@dataclass(eq=False)
class State:
    r"""
    A text as the model reads it.

    A cover is a token sequence whose bytes begin the text, and the node of what is left of the text: its next token crosses the text's end.

    Args:
        covers (`list[tuple[Context, Node]]`): The covers that are kept.
        spares (`list[Spare]`): The most likely of those that were left out.
        left_out (`float`): The log of an upper bound of the probability of all that was left out.
        kept (`float`): The share that was kept, if what was left out would have gone on as what was kept did.
        joint (`torch.Tensor` of shape `(257,)`):
            The log-probability of the text and each next byte or its end, over the covers that are kept, float64; of [`measured`] states.
        log_prob (`float`): The log-probability of the text, over the covers that are kept: a lower bound.
    """

    covers: list[tuple[Context, Node]]
    spares: list[Spare] = field(default_factory=list)
    left_out: float = -math.inf
    kept: float = 1.0
    joint: torch.Tensor = field(init=False, repr=False, default=_NOTHING)
    log_prob: float = field(init=False, default=-math.inf)

    @property
    def share(self) -> float:
        """The log-probability that a byte has which no kept cover leads to."""
        if self.log_prob == -math.inf:
            return 0.0
        return log_sum([spare.log_prob for spare in self.spares]) - math.log(BYTES + 1) if self.spares else -math.inf

    @property
    def missing(self) -> Missing:
        """How much of the text's probability was left out."""
        if self.left_out == -math.inf:
            return Missing(0.0, 0.0)
        return Missing(1 - self.kept, 1 / (1 + math.exp(min(700.0, self.log_prob - self.left_out))))


def following(states: Sequence[State]) -> torch.Tensor:
    r"""
    Log-probs of the next byte and, last, of the end of text, `(states, 257)`, float64. What no kept cover leads to has an equal share of
    what the spares weigh, so that it is unlikely but not ruled out. Where the model can write no such text, nothing is known, and all are
    equal.
    """
    joint = torch.stack([state.joint for state in states])
    shares = torch.tensor([state.share for state in states], dtype=torch.float64)[:, None]
    return torch.where(joint == -math.inf, shares, joint).log_softmax(-1)


def measured(states: Sequence[State]) -> Sequence[State]:
    """The same, which know now how probable they are, and what follows them: the sums over the covers of all of them at once."""
    if not states:
        return states
    owners = torch.tensor([i for i, state in enumerate(states) for _ in state.covers], dtype=torch.long)
    covers = [cover for state in states for cover in state.covers]
    terms = torch.full((len(covers), BYTES + 1), -math.inf, dtype=torch.float64)
    at_ends = [k for k, (_, node) in enumerate(covers) if node.depth == 0]
    if at_ends:
        terms[at_ends, :BYTES] = torch.stack([covers[k][0].first for k in at_ends])
        terms[at_ends, BYTES] = torch.tensor([covers[k][0].end for k in at_ends], dtype=torch.float64)
    inside = [k for k, (_, node) in enumerate(covers) if node.depth]
    if inside:
        terms[inside, :BYTES] = masses([(covers[k][0].table, covers[k][1]) for k in inside])
    terms += torch.tensor([context.log_prob for context, _ in covers], dtype=torch.float64)[:, None]
    joint = grouped_log_sum(terms, owners, len(states))
    for state, row, total in zip(states, joint, joint.logsumexp(-1).tolist(), strict=True):
        state.joint, state.log_prob = row, total
    return states


@dataclass
class Cost:
    """What was run: bytes answered for, sequences continued by tokens, the tokens read, and the forwards that did it."""

    bytes: int = 0
    covers: int = 0
    tokens: int = 0
    forwards: int = 0


class Covers:
    r"""
    Reads texts byte by byte.

    Args:
        model (`PreTrainedModel`): The model of tokens.
        lexicon ([`Lexicon`]): Its tokens.
        limit (`int`, *optional*): How many covers a byte may add; `None` for all, which is exact.
        threshold (`float`): The share of the text's probability below which a cover is not added.
    """

    def __init__(self, model: Any, lexicon: Lexicon, limit: int | None, threshold: float) -> None:
        self.member = Member.of(type(model).__name__, model)
        self.lexicon = lexicon
        self.limit = limit
        self.threshold = threshold
        self.cost = Cost()

    @functools.cached_property
    def _pads(self) -> bool:
        """Whether sequences of different lengths can be read in one forward, the shorter ones behind padding."""
        model = self.member.model
        layers = DynamicCache(config=model.config).layers
        return all(type(layer) is DynamicLayer for layer in layers) and reads_padding(model, self.member.device)

    @torch.no_grad()
    def read(
        self, after: Sequence[Context | None], tokens: Sequence[Sequence[int]], log_probs: Sequence[float]
    ) -> list[Context]:
        """Continue contexts by tokens, as many as can be in one forward. `None` is the empty context."""
        read: dict[int, Context] = {}
        groups: dict[Any, list[int]] = {}
        for i, (context, ids) in enumerate(zip(after, tokens, strict=True)):
            length, count = context.length if context else 0, len(ids)
            groups.setdefault((bool(length) and count) if self._pads else (length, count), []).append(i)
        for group in groups.values():
            contexts = self._forward([after[i] for i in group], [tokens[i] for i in group], [log_probs[i] for i in group])
            read |= zip(group, contexts, strict=True)
        return [read[i] for i in range(len(after))]

    def _forward(
        self, after: Sequence[Context | None], tokens: Sequence[Sequence[int]], log_probs: Sequence[float]
    ) -> list[Context]:
        """One forward: of the empty context, or of contexts that are continued by one number of tokens."""
        known = [context.states if context else () for context in after]
        lengths, counts = [context.length if context else 0 for context in after], [len(ids) for ids in tokens]
        cache = together(known, self.member.model.config)
        outputs = self.member.forward(
            input_ids=torch.tensor([[0] * (max(counts) - len(ids)) + list(ids) for ids in tokens]),
            inputs_embeds=None,
            **_behind_padding(lengths, counts),
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
            extra={},
        )
        self.cost.forwards += 1
        self.cost.covers += len(after)
        self.cost.tokens += sum(counts)
        check_finite(outputs.logits, self.member.name)
        states = apart(cache, known, counts)
        tables, ends = self.lexicon.read(outputs.logits[:, -1].float().cpu())
        first = self.lexicon.first(tables)
        wholes = [length + count for length, count in zip(lengths, counts, strict=True)]
        return [Context(*each) for each in zip(log_probs, tables, first, ends, wholes, states, strict=True)]

    def start(self, contexts: Sequence[Context]) -> list[State]:
        """Texts that end where a token does."""
        return list(measured([State([(context, self.lexicon.root)]) for context in contexts]))

    def advance(self, states: Sequence[State], following: Sequence[int]) -> list[State]:
        """Append one byte to every text. Nothing is known of what follows a special id (below 0), such as the end of a text."""
        self.cost.bytes += len(states)
        grown: list[State] = []
        starting: list[tuple[State, Spare]] = []
        for state, byte in zip(states, following, strict=True):
            after, started = self._grow(state, byte)
            grown.append(after)
            starting += [(after, spare) for spare in started]
        if starting:
            contexts = self.read(
                [spare.context for _, spare in starting],
                [[int(self.lexicon.ids[spare.token])] for _, spare in starting],
                [spare.log_prob for _, spare in starting],
            )
            for (after, _), context in zip(starting, contexts, strict=True):
                after.covers.append((context, self.lexicon.root))
        measured(grown)
        return [after if after.covers else self._revived(after) for after in grown]

    def _grow(self, state: State, byte: int) -> tuple[State, list[Spare]]:
        """The covers that go on with a byte, and the tokens that end with it and are to be read."""
        if byte < 0:
            return State([], [], state.left_out), []
        stay: list[tuple[Context, Node]] = []
        ending: list[Spare] = []
        for context, node in state.covers:
            child = node.children.get(byte)
            if child is None:
                continue
            if child.open < child.high:
                stay.append((context, child))
            for token in range(child.low, child.open):
                if (weight := context.log_prob + float(context.table[token])) > -math.inf:
                    ending.append(Spare(weight, context, token))
        ending.sort(key=lambda spare: -spare.log_prob)
        total = float(state.joint[byte])
        least = total + (math.log(self.threshold) if self.threshold else -math.inf)
        kept = [spare for spare in ending[: self.limit] if spare.log_prob >= least]
        left = ending[len(kept) :]
        older = [
            Spare(spare.log_prob, spare.context, spare.token, (*spare.tail, byte))
            for spare in state.spares
            if len(spare.tail) < _SPARE_BYTES
        ]
        spares = sorted([*left, *older], key=lambda spare: -spare.log_prob)[:_SPARES]
        share = sum(math.exp(spare.log_prob - total) for spare in left)
        left_out = log_sum([state.left_out, *(spare.log_prob for spare in left)])
        return State(stay, spares, left_out, state.kept * max(0.0, 1 - share)), kept

    def _revived(self, state: State) -> State:
        """No kept cover leads to this text: the most likely one that was left out and does."""
        for i, spare in enumerate(state.spares):
            [context] = self.read([spare.context], [[int(self.lexicon.ids[spare.token])]], [spare.log_prob])
            [revived] = self.start([context])
            revived.left_out = state.left_out
            revived.kept = state.kept * math.exp(spare.log_prob - log_sum([each.log_prob for each in state.spares]))
            for byte in spare.tail:
                [revived] = self.advance([revived], [byte])
            if revived.covers:
                others = [*revived.spares, *(other for other in state.spares[i + 1 :])]
                revived.spares = sorted(others, key=lambda other: -other.log_prob)[:_SPARES]
                return revived
        return state


def _behind_padding(lengths: Sequence[int], counts: Sequence[int]) -> dict[str, torch.Tensor | None]:
    """Mask and positions of rows that hold so many tokens and read so many, where they differ; tokens end together, and begin later."""
    wholes = [length + count for length, count in zip(lengths, counts, strict=True)]
    if min(wholes) == max(wholes):
        return {"attention_mask": None, "position_ids": None}
    mask = torch.arange(max(wholes)) >= max(wholes) - torch.tensor(wholes)[:, None]  # (rows, held + read)
    return {"attention_mask": mask.long(), "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -max(counts) :]}
