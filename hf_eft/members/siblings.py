"""Caches of the members beside the main one, of its cache's kind and size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import (
    Cache,
    DynamicCache,
    QuantizedCache,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
    get_layer_types_and_kwargs,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def sibling_cache(cache: Cache, name: str, model: PreTrainedModel, max_cache_len: int | None = None) -> Cache:
    """
    An empty cache for the member `name`, of the kind, capacity and offloading that `cache` has for the main member.

    A static cache holds the larger of `max_cache_len` and what the layers of `cache` hold. (`cache.get_max_length()` would be
    wrong: with sliding layers only, it answers with their window.)
    """
    if isinstance(cache, QuantizedCache):
        return _sibling_quantized(cache, name, model.config.get_text_config(decoder=True))
    if isinstance(cache, StaticCache):
        lengths = _static_lengths(cache)
        if max_cache_len is None and not lengths:
            raise ValueError(
                f"How long should the static cache of the member {name!r} be? The main member's has sliding layers only, which "
                "do not say. Call `generate`, which knows, or pass a dynamic cache."
            )
        room = max([*lengths, max_cache_len or 0])
        static = StaticCache(config=model.config, max_cache_len=room, offloading=cache.offloading)
        # A window that holds all tokens never slides, but counts them in a number, for each of which a graph would be compiled.
        static.layers = [
            StaticLayer(room) if isinstance(layer, StaticSlidingWindowLayer) and layer.max_cache_len == room else layer
            for layer in static.layers
        ]
        return static
    return DynamicCache(config=model.config, offloading=cache.offloading)


def _static_lengths(cache: Cache) -> list[int]:
    """How many tokens the layers hold that hold all tokens: not sliding ones, not linear ones."""
    return [layer.max_cache_len for layer in cache.layers if isinstance(layer, StaticLayer) and not layer.is_sliding]


def _sibling_quantized(cache: QuantizedCache, name: str, config: Any) -> QuantizedCache:
    kinds = set(get_layer_types_and_kwargs(config)[0])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"A quantized cache needs full attention in every layer, but the member {name!r} has {sorted(kinds)}. Use another "
            "`cache_implementation`."
        )
    options = ("nbits", "axis_key", "axis_value", "q_group_size", "residual_length")
    layer = cache.layers[0]
    same = {option: getattr(layer, option) for option in options if hasattr(layer, option)}
    sibling = QuantizedCache.__new__(QuantizedCache)
    Cache.__init__(sibling, layers=[type(layer)(**same) for _ in range(config.num_hidden_layers)])
    return sibling


def check_room(name: str, cache: Cache, needed: int | None) -> None:
    """Raise if a static cache holds fewer tokens than are needed."""
    if needed is None or not isinstance(cache, StaticCache):
        return
    rooms = _static_lengths(cache)
    if rooms and max(rooms) < needed:
        raise ValueError(
            f"The static cache of the member {name!r} holds {max(rooms)} tokens, but this call needs {needed}. Pass a larger "
            "`StaticCache`, or generate fewer tokens."
        )
