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
_PIECES = 32  # how many short ones before they are put together


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Keys and values of a layer that holds all tokens, in pieces `(1, heads, tokens, size)`: those of the beginning are shared."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    def followed_by(self, keys: torch.Tensor, values: torch.Tensor) -> _Pieces:
        return _Pieces(_added(self.keys, keys), _added(self.values, values))


def _added(pieces: tuple[torch.Tensor, ...], piece: torch.Tensor) -> tuple[torch.Tensor, ...]:
    pieces = (*pieces, piece.clone())
    short = pieces[-_PIECES:]
    if len(short) == _PIECES and all(each.shape[-2] < _PIECES for each in short):
        return (*pieces[:-_PIECES], torch.cat(short, dim=-2))
    return pieces


def together(rows: Sequence[Sequence[Any]], config: Any) -> DynamicCache:
    """One cache whose rows are sequences of one length; an empty one for sequences without states."""
    cache = DynamicCache(config=config)
    if rows[0]:
        cache.layers = [_joined(layers) for layers in zip(*rows, strict=True)]
    return cache


def apart(cache: Cache, before: Sequence[Sequence[Any]], read: int) -> list[tuple[Any, ...]]:
    """The states of every row after `read` more tokens, from those `before`."""
    for layer in cache.layers:
        if type(layer) is not DynamicLayer and type(layer) not in _WHOLE:
            raise ValueError(
                f"Byte-level members need states that can be branched; a {type(layer).__name__} is not known to be such."
            )
    return [
        tuple(
            (known[i] if known else _Pieces((), ())).followed_by(
                layer.keys[row : row + 1, :, -read:], layer.values[row : row + 1, :, -read:]
            )
            if type(layer) is DynamicLayer
            else _row_of(layer, row)
            for i, layer in enumerate(cache.layers)
        )
        for row, known in enumerate(before)
    ]


def _joined(layers: Sequence[Any]) -> Any:
    first = layers[0]
    if isinstance(first, _Pieces):
        layer = DynamicLayer()
        layer.lazy_initialization(first.keys[0], first.values[0])
        layer.keys, layer.values = (
            torch.cat([torch.cat(getattr(each, name), dim=-2) for each in layers]) for name in _BY_NAME
        )  # (rows, heads, tokens, size)
        return layer
    return _mapped(first, lambda get: torch.cat([get(each) for each in layers]))


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
