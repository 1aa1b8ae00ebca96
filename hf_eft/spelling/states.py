"""The states of sequences: what was read together lies in one cache, where each goes on in its row."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

_BY_NAME = ("keys", "values")
_BY_INDEX = ("conv_states", "recurrent_states")
_WHOLE = (
    DummyLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
_SPARSE = 2  # how many columns a batch may have for each that its longest sequence has
_MOVED = 20  # multiplications by a weight that take as long as moving a number of states to another batch and back

Spans = tuple[tuple[int, int], ...]  # from column to column


@dataclass
class _Group:
    """Sequences of one batch: which of all they are, `(sequences,)`, and the row, `(sequences, 1)`, and the columns there of each."""

    batch: Batch
    at: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


@dataclass(eq=False)
class Batch:
    """Sequences in one cache, whose layers that hold all tokens have so many columns."""

    cache: DynamicCache
    rows: int
    columns: int

    @property
    def held(self) -> int:
        """How many numbers its layers hold that hold all tokens."""
        return sum(layer.keys.numel() + layer.values.numel() for layer in self.cache.layers if type(layer) is DynamicLayer)


@dataclass(eq=False, slots=True)
class Place:
    """
    Where the states of a sequence are: a row of a batch, in its layers that hold all tokens the columns of `spans`. Other columns are of
    nobody, or of what other sequences went on with. Of other layers, `parts` has what they were (`None` for those that hold all).
    """

    batch: Batch
    row: int
    length: int
    spans: Spans
    parts: tuple[Any, ...]

    def earlier(self, count: int) -> Place:
        """The place so many tokens before, where all layers hold all tokens; these were read together."""
        start, end = self.spans[-1]
        return replace(self, length=self.length - count, spans=(*self.spans[:-1], (start, end - count)))


def together(places: Sequence[Place | None], config: Any, pads: bool, weights: int) -> tuple[Batch, list[int], list[Spans]]:
    """
    A batch of sequences, or of empty ones, the row of each and its columns there: where they are, if they can go on there. Where all
    layers hold all tokens (`pads`), that is wherever each has a row for itself, unless a model of so many `weights` would take longer to
    read in vain in the other rows than it takes to move states.
    """
    known = [place for place in places if place is not None]
    if not known:
        return Batch(DynamicCache(config=config), len(places), 0), list(range(len(places))), [()] * len(places)
    batch, rows, spans = known[0].batch, [place.row for place in known], [place.spans for place in known]
    longest = max(place.length for place in known)
    if all(place.batch is batch for place in known):
        alone, dense = len(set(rows)) == len(rows), batch.columns <= _SPARSE * longest
        others = batch.rows - len(rows)
        few = others <= len(rows) or (dense and others * weights <= _MOVED * batch.held)
        whole = rows == list(range(batch.rows)) and all(own == ((0, batch.columns),) for own in spans)
        if (pads and alone and few) or whole:
            return batch, rows, spans
        if pads and dense:  # columns of nobody stay where they are
            cache = DynamicCache(config=config)
            cache.layers = [_changed(layer, lambda get, layer=layer: get(layer)[rows]) for layer in batch.cache.layers]
            return Batch(cache, len(known), batch.columns), list(range(len(known))), spans
    cache, groups = DynamicCache(config=config), _by_batch(known, longest)
    cache.layers = [
        _full(groups, i, len(known)) if part is None else _mapped(part, [place.parts[i] for place in known])
        for i, part in enumerate(known[0].parts)
    ]
    return Batch(cache, len(known), longest), list(range(len(known))), [((longest - place.length, longest),) for place in known]


def masked(batch: Batch, rows: Sequence[int], spans: Sequence[Spans], counts: Sequence[int]) -> dict[str, Any]:
    """
    Mask and positions for rows of a batch that read so many tokens more, as many columns as the most. Rows that read nothing see what they
    are given, and nobody sees it later.
    """
    columns, most = batch.columns, max(counts)
    if len(rows) == batch.rows and min(counts) == most and (not columns or all(own == ((0, columns),) for own in spans)):
        return {"attention_mask": None, "position_ids": None}
    mask = np.zeros((batch.rows, columns + most), dtype=np.int64)
    mask[:, columns:] = 1
    positions = np.zeros((batch.rows, most), dtype=np.int64)
    for row, own, count in zip(rows, spans, counts, strict=True):
        for start, end in own:
            mask[row, start:end] = 1
        mask[row, columns : columns + most - count] = 0
        before = sum(end - start for start, end in own)
        positions[row, most - count :] = range(before, before + count)
    return {"attention_mask": torch.from_numpy(mask), "position_ids": torch.from_numpy(positions)}


def gone_on(batch: Batch, rows: Sequence[int], spans: Sequence[Spans], counts: Sequence[int]) -> list[Place]:
    """The places of sequences behind so many more tokens, which a batch has read."""
    batch.columns += max(counts)
    for layer in batch.cache.layers:
        if type(layer) is not DynamicLayer and type(layer) not in _WHOLE:
            raise ValueError(
                f"Members whose tokens differ need states that can be branched; a {type(layer).__name__} is not known to be such."
            )
    layers = [None if type(layer) is DynamicLayer else layer for layer in batch.cache.layers]
    hold_all = (None,) * len(layers) if not any(layers) else None
    longer: dict[tuple[Spans, int], tuple[Spans, int]] = {}  # most rows have the same columns
    places = []
    for row, own, count in zip(rows, spans, counts, strict=True):
        if (own, count) not in longer:
            start = batch.columns - count
            goes_on = bool(own) and own[-1][1] == start
            joined = (*own[:-1], (own[-1][0], batch.columns)) if goes_on else (*own, (start, batch.columns))
            longer[own, count] = joined, sum(end - begin for begin, end in joined)
        joined, length = longer[own, count]
        places.append(Place(batch, row, length, joined, hold_all or tuple(layer and _row_of(layer, row) for layer in layers)))
    return places


def _by_batch(places: Sequence[Place], columns: int) -> list[_Group]:
    """Sequences that shall end together in so many columns, by the batch that they are in."""
    batches = {id(place.batch): place.batch for place in places}
    groups = []
    for batch in batches.values():
        at = [i for i, place in enumerate(places) if place.batch is batch]
        own = np.zeros((len(at), columns), dtype=np.int64)  # what is in front is seen by nobody
        for row, i in zip(own, at, strict=True):
            row[columns - places[i].length :] = [column for span in places[i].spans for column in range(*span)]
        rows = torch.tensor([[places[i].row] for i in at])
        groups.append(_Group(batch, torch.tensor(at), rows, torch.from_numpy(own)))
    return groups


def _full(groups: Sequence[_Group], i: int, count: int) -> DynamicLayer:
    """A layer that holds all tokens of so many sequences, which end together."""
    made = DynamicLayer()
    layers = [group.batch.cache.layers[i] for group in groups]
    made.lazy_initialization(layers[0].keys, layers[0].values)
    for name in _BY_NAME:
        parts = [getattr(layer, name)[group.rows, :, group.columns] for group, layer in zip(groups, layers, strict=True)]
        whole = parts[0]  # (rows, columns, heads, size)
        if len(groups) > 1:
            whole = whole.new_empty((count, *whole.shape[1:]))
            for group, part in zip(groups, parts, strict=True):
                whole[group.at] = part
        setattr(made, name, whole.transpose(1, 2))
    return made


def _row_of(layer: Any, row: int) -> Any:
    return _changed(layer, lambda get: get(layer)[row : row + 1].clone())


def _mapped(first: Any, layers: Sequence[Any]) -> Any:
    return _changed(first, lambda get: torch.cat([get(each) for each in layers]))


def _changed(layer: Any, change: Any) -> Any:
    """A layer of the same kind with other tensors; `change` is given what takes one out of a layer."""
    other = copy.copy(layer)
    for name in _BY_NAME:
        if (states := getattr(layer, name, None)) is not None and states.numel():
            setattr(other, name, change(lambda each, name=name: getattr(each, name)))
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(other, name, dict(value))
    for name in _BY_INDEX:
        for i, states in getattr(layer, name, {}).items():
            if states is not None:
                getattr(other, name)[i] = change(lambda each, name=name, i=i: getattr(each, name)[i])
    return other
