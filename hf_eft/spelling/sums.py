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
    todo = [state for state in states if state.next is None and state.covers]
    ended = [context for state in todo for context, node in state.covers if node.depth == 0]
    following = iter(lexicon.next(_tables(ended)) if ended else ())
    several: list[State] = []
    behind: list[list[torch.Tensor]] = []  # for each of these, what follows the covers whose token has ended
    for state in todo:
        own = [next(following) for _, node in state.covers if node.depth == 0]
        if len(own) == len(state.covers) == 1:
            state.next, state.log_prob = own[0], state.covers[0][0].log_prob
        else:
            several.append(state)
            behind.append(own)
    if several:
        _sum(several, behind, lexicon.symbols + 1)


def following(states: Sequence[State], lexicon: Lexicon) -> torch.Tensor:
    r"""
    Log-probs of the next symbol and, last, of the end of text, `(states, symbols + 1)`. What no kept cover leads to has an equal share of
    what was left out, so that it is unlikely but not ruled out. Where the model can write no such text, nothing is known, and all are
    equal.
    """
    measure(states, lexicon)
    known = next((state.next for state in states if state.next is not None), None)
    nothing = torch.zeros(lexicon.symbols + 1) if known is None else torch.zeros_like(known)
    rows = torch.stack([nothing if state.next is None or state.log_prob == -math.inf else state.next for state in states])
    if all(state.log_prob > -math.inf and not state.spares for state in states):
        return rows
    shares = rows.new_tensor([_share(state, lexicon.symbols + 1) for state in states])[:, None]
    return torch.where(rows == -math.inf, shares, rows).log_softmax(-1)


def _share(state: State, count: int) -> float:
    """
    The log-probability, given the text, of a symbol which no kept cover leads to: an equal share of what was left out, as if that had lost
    as much by each symbol since as what was kept. (By its weight when it was left out, anything could follow an unlikely text.)
    """
    if not state.spares or state.log_prob == -math.inf:
        return -math.inf
    return math.log(max(1 - state.kept, _LEAST_SHARE) / max(state.kept, _LEAST_SHARE)) - math.log(count)


def _tables(contexts: Sequence[Context]) -> torch.Tensor:
    """The log-probs of the next token behind each, `(contexts, width)`."""
    tables, rows = contexts[0].tables, [context.row for context in contexts]
    if any(context.tables is not tables for context in contexts):
        return torch.stack([context.table for context in contexts])
    return tables if rows == list(range(len(tables))) else tables[rows]


def _sum(states: Sequence[State], behind: Sequence[Sequence[torch.Tensor]], count: int) -> None:
    """What follows texts with several covers. Their weights are taken relative to the heaviest, so that long texts lose no digits."""
    heaviest = [max(context.log_prob for context, _ in state.covers) for state in states]
    tables = states[0].covers[0][0].tables
    dense = tables.new_full((len(states), count), -torch.inf)
    ended = [
        (i, values, context.log_prob - heaviest[i])
        for i, state in enumerate(states)
        for values, context in zip(behind[i], (c for c, node in state.covers if node.depth == 0), strict=True)
    ]
    if ended:
        owners = torch.tensor([i for i, _, _ in ended])
        values = torch.stack([values for _, values, _ in ended]) + tables.new_tensor([weight for *_, weight in ended])[:, None]
        dense = grouped_log_sum(values, owners, len(states))
    inside = [
        (i, context, node, context.log_prob - heaviest[i])
        for i, state in enumerate(states)
        for context, node in state.covers
        if node.depth
    ]
    if inside:
        _add(dense.view(-1), inside, count)
    totals = dense.logsumexp(-1)
    for state, row, total, most in zip(
        states, dense - totals.clamp(min=-1e30)[:, None], totals.tolist(), heaviest, strict=True
    ):
        state.next, state.log_prob = row, most + total


def _add(flat: torch.Tensor, inside: Sequence[tuple[int, Context, Node, float]], count: int) -> None:
    """Add what follows covers whose token has not ended, in place: only the symbols that go on with tokens."""
    values = torch.cat([context.table[node.ids] + weight for _, context, node, weight in inside])
    places, groups = torch.cat([i * count + node.next for i, _, node, _ in inside]).unique(return_inverse=True)
    flat[places] = torch.logaddexp(flat[places], grouped_log_sum(values, groups, len(places)))
