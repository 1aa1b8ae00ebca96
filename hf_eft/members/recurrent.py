"""Recurrent states: whether a cache has any, which caches need layers for them, and rows that have read nothing but padding."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin


def linear_layers(cache: Cache) -> list[LinearAttentionCacheLayerMixin]:
    """The layers that sum up what they read."""
    return [layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]


def is_recurrent(layer: Any) -> bool:
    """Whether a layer holds states that sum up all that was read. (Convolutions without them hold the last tokens.)"""
    return isinstance(layer, LinearAttentionCacheLayerMixin) and any(layer.is_recurrent_states_initialized.values())


def records(layer: Any) -> bool:
    """Whether a layer forgets what cropping it needs, unless it records the past: windows, and convolutions without recurrent states."""
    return isinstance(layer, DynamicSlidingWindowLayer) or (
        isinstance(layer, LinearAttentionCacheLayerMixin) and not is_recurrent(layer)
    )


def has_read(cache: Cache) -> bool:
    """Whether a cache has read anything: it has states, or counts tokens."""
    attending = [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin) and layer.is_initialized]
    return any(state for layer in linear_layers(cache) for state in layer.has_previous_state.values()) or any(
        int(layer.get_seq_length()) > 0 for layer in attending
    )


def rows_of(cache: Cache) -> int | None:
    """Of how many rows a cache holds states, if it holds any: those of attention (be it of no token) or those that sum up."""
    held = [getattr(layer, "keys", None) for layer in cache.layers]
    for layer in linear_layers(cache):
        held += [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return next((len(states) for states in held if states is not None and states.dim() > 1), None)


def give_layers(cache: Cache, config: Any) -> None:
    """
    Give a `DynamicCache()` that was made without a configuration the layers that this one needs, in place: left to itself it would make
    attention layers.
    """
    if type(cache) is DynamicCache and not cache.layers:
        made = DynamicCache(config=config)
        if linear_layers(made):
            cache.layers, cache.layer_class_to_replicate = made.layers, None


def rows_of_padding(attention_mask: Any) -> torch.Tensor | None:
    """Which rows have read nothing but padding so far, `(batch,)`; `None` if none has."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2 or torch.compiler.is_compiling():
        return None
    rows = ~attention_mask.bool().any(-1)
    return rows if bool(rows.any()) else None


def forget_rows(cache: Cache, rows: torch.Tensor) -> None:
    """Put these rows' recurrent states back to their start: a model that reads one token at a time does not ask whether it is padding."""
    for layer in linear_layers(cache):
        for kept in (layer.conv_states, layer.recurrent_states):
            for i, states in kept.items():
                if states is not None:
                    shape = (-1, *(1 for _ in states.shape[1:]))
                    kept[i] = states.masked_fill(rows.to(states.device).view(shape), 0)
