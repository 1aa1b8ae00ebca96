"""What a model of tokens says about the next symbol: sums over the token sequences that cover a text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .lexicon import Lexicon, Node, grouped_log_sum
from .texts import Context, State

_LEAST_SHARE = 1e-9


def measure(states: Sequence[State], lexicon: Lexicon) -> None:
    """Find out how probable texts are, and what follows them: the sums over the covers of all of them at once."""
    todo = [state for state in states if state.said is None and state.covers]
    ended = [context for state in todo for context, node in state.covers if node.depth == 0]
    behind = lexicon.next(tables_of(ended)) if ended else None  # (ended, symbols + 1)
    alone: list[tuple[int, int]] = []  # of texts with one cover, whose token has ended, their place and their row behind it
    several: list[tuple[int, int]] = []  # of the others, their place and the first row that is behind one of their covers
    at = 0
    for i, state in enumerate(todo):
        count = sum(node.depth == 0 for _, node in state.covers)
        (alone if count == len(state.covers) == 1 else several).append((i, at))
        at += count
    said = behind
    for i, _ in alone:
        todo[i].log_prob = todo[i].covers[0][0].log_prob
    if several:
        summed, totals = _sum([(todo[i], first) for i, first in several], behind, lexicon.symbols + 1)
        for (i, _), total in zip(several, totals, strict=True):
            todo[i].log_prob = total
        said = summed.new_empty(len(todo), lexicon.symbols + 1)
        said[[i for i, _ in several]] = summed
        if behind is not None and alone:
            said[[i for i, _ in alone]] = behind[[row for _, row in alone]]
    for i, state in enumerate(todo):
        state.said, state.row = said, i


def following(states: Sequence[State], lexicon: Lexicon) -> torch.Tensor:
    r"""
    Log-probs of the next symbol and, last, of the end of text, `(states, symbols + 1)`. What no kept cover leads to has an equal share of
    what was left out, so that it is unlikely but not ruled out. Where the model can write no such text, nothing is known, and all are
    equal.
    """
    measure(states, lexicon)
    rows = _said(states, lexicon.symbols + 1)
    if all(state.log_prob > -math.inf and not state.spares for state in states):
        return rows
    shares = rows.new_tensor([_share(state, lexicon.symbols + 1) for state in states])[:, None]
    return torch.where(rows == -math.inf, shares, rows).log_softmax(-1)


def _said(states: Sequence[State], count: int) -> torch.Tensor:
    """What follows each, `(states, count)`: as it lies there, if they lie there one after the other."""
    first = next((state.said for state in states if state.said is not None), None)
    if first is not None and all(
        state.said is first and state.row == i and state.log_prob > -math.inf for i, state in enumerate(states)
    ):
        return first[: len(states)]
    nothing = torch.zeros(count) if first is None else first.new_zeros(count)
    return torch.stack(
        [nothing if state.said is None or state.log_prob == -math.inf else state.said[state.row] for state in states]
    )


def _share(state: State, count: int) -> float:
    """
    The log-probability, given the text, of a symbol which no kept cover leads to: an equal share of what was left out, as if that had lost
    as much by each symbol since as what was kept. (By its weight when it was left out, anything could follow an unlikely text.)
    """
    if not state.spares or state.log_prob == -math.inf:
        return -math.inf
    return math.log(max(1 - state.kept, _LEAST_SHARE) / max(state.kept, _LEAST_SHARE)) - math.log(count)


def tables_of(contexts: Sequence[Context]) -> torch.Tensor:
    """The log-probs of the next token behind each, `(contexts, width)`."""
    tables, rows = contexts[0].tables, [context.row for context in contexts]
    if any(context.tables is not tables for context in contexts):
        return torch.stack([context.table for context in contexts])
    return tables if rows == list(range(len(tables))) else tables[rows]


def _sum(several: Sequence[tuple[State, int]], behind: torch.Tensor | None, count: int) -> tuple[torch.Tensor, list[float]]:
    """
    What follows texts with several covers, `(texts, count)`, and how probable they are: of each, `behind` has, from a row on, what follows
    those whose token has ended. Weights are taken relative to the heaviest, so that long texts lose no digits.
    """
    states = [state for state, _ in several]
    heaviest = [max(context.log_prob for context, _ in state.covers) for state in states]
    tables = states[0].covers[0][0].tables
    dense = tables.new_full((len(states), count), -torch.inf)
    ended = [
        (i, first + j, context.log_prob - heaviest[i])
        for i, (state, first) in enumerate(several)
        for j, context in enumerate(context for context, node in state.covers if node.depth == 0)
    ]
    if behind is not None and ended:
        values = behind[[row for _, row, _ in ended]] + tables.new_tensor([weight for *_, weight in ended])[:, None]
        texts = torch.tensor([i for i, *_ in ended])  # one after the other
        if len(ended) > len({i for i, *_ in ended}):
            texts, counts = texts.unique_consecutive(return_counts=True)
            values = grouped_log_sum(values.T.contiguous(), counts).T
        dense[texts] = values
    inside = [
        (i, context, node, context.log_prob - heaviest[i])
        for i, state in enumerate(states)
        for context, node in state.covers
        if node.depth
    ]
    if inside:
        _add(dense.view(-1), inside, count)
    totals = dense.logsumexp(-1)
    said = dense - totals.clamp(min=-1e30)[:, None]
    return said, [most + total for total, most in zip(totals.tolist(), heaviest, strict=True)]


def _add(flat: torch.Tensor, inside: Sequence[tuple[int, Context, Node, float]], count: int) -> None:
    """Add what follows covers whose token has not ended, in place: only the symbols that go on with tokens."""
    values = torch.cat([context.table[node.ids] + weight for _, context, node, weight in inside])
    where, order = torch.cat([i * count + node.next for i, _, node, _ in inside]).sort()
    places, counts = where.unique_consecutive(return_counts=True)
    flat[places] = torch.logaddexp(flat[places], grouped_log_sum(values[None, order], counts)[0])
