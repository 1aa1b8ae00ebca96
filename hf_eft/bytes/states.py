"""The states of one sequence, shared with those that it was continued to, and several as one batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
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
_ROOM = 32  # tokens that a line has room for beyond those that it holds


class _Line:
    """Room for the keys and values of one sequence in one layer, `(1, heads, room, size)`; `used` says how many tokens are there."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        self.parts = tuple(part.new_empty((*part.shape[:-2], room, part.shape[-1])) for part in (keys, values))
        self.used = 0
        self.add(keys, values)

    def add(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = self.used + keys.shape[-2]
        for part, more in zip(self.parts, (keys, values), strict=True):
            part[..., self.used : end, :] = more
        self.used = end


@dataclass(frozen=True, eq=False)
class _Held:
    """The first tokens of a line: a layer that holds all tokens. Who is first to go on from here goes on in the line, others in a copy."""

    line: _Line
    length: int

    def followed_by(self, keys: torch.Tensor, values: torch.Tensor) -> _Held:
        length = self.length + keys.shape[-2]
        if self.line.used == self.length and length <= self.line.parts[0].shape[-2]:
            self.line.add(keys, values)
            return _Held(self.line, length)
        before = [part[..., : self.length, :] for part in self.line.parts]
        line = _Line(before[0], before[1], length + length // 4 + _ROOM)
        line.add(keys, values)
        return _Held(line, length)


def together(rows: Sequence[Sequence[Any]], config: Any) -> DynamicCache:
    """
    One cache whose rows are sequences; an empty one for sequences without states. Shorter ones have zeros in front, where all layers hold
    all tokens; the others are of one length.
    """
    cache = DynamicCache(config=config)
    if rows[0]:
        cache.layers = [_joined(layers) for layers in zip(*rows, strict=True)]
    return cache


def apart(cache: Cache, before: Sequence[Sequence[Any]], read: Sequence[int]) -> list[tuple[Any, ...]]:
    """The states of every row after so many more tokens, from those `before`."""
    for layer in cache.layers:
        if type(layer) is not DynamicLayer and type(layer) not in _WHOLE:
            raise ValueError(
                f"Byte-level members need states that can be branched; a {type(layer).__name__} is not known to be such."
            )
    return [
        tuple(
            _gone_on(
                known[i] if known else None, *(part[row : row + 1, :, -read[row] :] for part in (layer.keys, layer.values))
            )
            if type(layer) is DynamicLayer
            else _row_of(layer, row)
            for i, layer in enumerate(cache.layers)
        )
        for row, known in enumerate(before)
    ]


def _joined(layers: Sequence[Any]) -> Any:
    first = layers[0]
    if isinstance(first, _Held):
        layer = DynamicLayer()
        layer.lazy_initialization(*first.line.parts)
        longest = max(each.length for each in layers)
        layer.keys, layer.values = (
            part.new_zeros((len(layers), *part.shape[1:-2], longest, part.shape[-1])) for part in first.line.parts
        )  # (rows, heads, tokens, size)
        for row, each in enumerate(layers):
            for whole, part in zip((layer.keys, layer.values), each.line.parts, strict=True):
                whole[row, :, longest - each.length :] = part[0, :, : each.length]
        return layer
    return _mapped(first, lambda get: torch.cat([get(each) for each in layers]))


def _gone_on(held: _Held | None, keys: torch.Tensor, values: torch.Tensor) -> _Held:
    if held is None:
        return _Held(_Line(keys, values, keys.shape[-2] + _ROOM), keys.shape[-2])
    return held.followed_by(keys, values)


def _row_of(layer: Any, row: int) -> Any:
    return _mapped(layer, lambda get: get(layer)[row : row + 1].clone())


def _mapped(layer: Any, change: Any) -> Any:
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
