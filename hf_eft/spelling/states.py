"""The states of sequences: what was read together lies in one cache, and is taken apart only where some go on and others do not."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(eq=False)
class Batch:
    """Sequences in one cache, whose layers that hold all tokens have so many columns. Shorter sequences have padding in front."""

    cache: DynamicCache
    rows: int
    columns: int


@dataclass(frozen=True, eq=False)
class Place:
    """
    Where the states of a sequence are: a row of a batch, as it was when it had so many columns. The batch may have gone on since: layers that
    hold all tokens still have these, and of other layers, `parts` has what they were (`None` for those that hold all).
    """

    batch: Batch
    row: int
    columns: int
    length: int
    parts: tuple[Any, ...]


def together(places: Sequence[Place | None], config: Any) -> Batch:
    """One batch of sequences, or of empty ones: the one that they are in, if they are all of it and it has not gone on since."""
    known = [place for place in places if place is not None]
    if not known:
        return Batch(DynamicCache(config=config), len(places), 0)
    batch = known[0].batch
    if len(known) == batch.rows and all(
        place.batch is batch and place.row == row and place.columns == batch.columns for row, place in enumerate(known)
    ):
        return batch
    cache = DynamicCache(config=config)
    cache.layers = [
        _full(known, i) if part is None else _mapped(part, [place.parts[i] for place in known])
        for i, part in enumerate(known[0].parts)
    ]
    return Batch(cache, len(known), max(place.length for place in known))


def gone_on(batch: Batch, lengths: Sequence[int], count: int) -> list[Place]:
    """The places of a batch's sequences, which are so long now that it has read so many columns more."""
    batch.columns += count
    for layer in batch.cache.layers:
        if type(layer) is not DynamicLayer and type(layer) not in _WHOLE:
            raise ValueError(f"Members whose tokens differ need states that can be branched; a {type(layer).__name__} is not known to be such.")
    layers = [None if type(layer) is DynamicLayer else layer for layer in batch.cache.layers]
    return [
        Place(batch, row, batch.columns, length, tuple(layer and _row_of(layer, row) for layer in layers))
        for row, length in enumerate(lengths)
    ]


def _full(places: Sequence[Place], i: int) -> DynamicLayer:
    """A layer that holds all tokens of some sequences, which end together."""
    first = places[0]
    longest = max(place.length for place in places)
    made = DynamicLayer()
    before = [place.batch.cache.layers[i] for place in places]
    made.lazy_initialization(before[0].keys, before[0].values)
    if all(place.batch is first.batch and place.columns == first.columns for place in places):
        rows = torch.tensor([place.row for place in places], device=before[0].keys.device)
        made.keys, made.values = (
            part[:, :, first.columns - longest : first.columns].index_select(0, rows)
            for part in (before[0].keys, before[0].values)
        )
        return made
    made.keys, made.values = (
        part.new_zeros((len(places), *part.shape[1:-2], longest, part.shape[-1])) for part in (before[0].keys, before[0].values)
    )  # (rows, heads, tokens, size)
    for row, (place, layer) in enumerate(zip(places, before, strict=True)):
        for whole, part in zip((made.keys, made.values), (layer.keys, layer.values), strict=True):
            whole[row, :, longest - place.length :] = part[place.row, :, place.columns - place.length : place.columns]
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
