"""Static caches whose rows end at different tokens: states stay where they were written, and what a row takes back is written over."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, StaticLayer, StaticSlidingWindowLayer, get_layer_types_and_kwargs

_MASKS = ("sdpa", "eager")


class RaggedLayer(StaticLayer):
    """A layer of a static cache in which every row goes on where it ends."""

    ends: torch.Tensor  # (rows,): where each row's next token goes; one tensor for all layers of a member

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Behind the last place nothing is kept: what is drafted there is dropped.
        places = places_of(self.ends, key_states.shape[-2]).clamp(max=self.max_cache_len - 1)
        rows = torch.arange(len(self.ends), device=self.ends.device)[:, None]
        self.keys[rows, :, places] = key_states.transpose(1, 2)
        self.values[rows, :, places] = value_states.transpose(1, 2)
        return self.keys, self.values


def places_of(ends: torch.Tensor, count: int) -> torch.Tensor:
    """Where the next `count` tokens of each row go, `(rows, count)`."""
    return ends[:, None] + torch.arange(count, device=ends.device)


def is_ragged(cache: Cache) -> bool:
    """Whether the rows of a cache end at different tokens, so that it counts them by row."""
    return bool(cache.layers) and hasattr(cache.layers[0], "ends")


def make_whole(cache: Cache, otherwise: int) -> None:
    """
    Let a static cache that is empty keep all tokens, in layers with a window as well, which could not take any back: as many as its other
    layers do; `otherwise` this number.
    """
    rooms = [layer.max_cache_len for layer in cache.layers if type(layer) is StaticLayer]
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, StaticSlidingWindowLayer) and not layer.is_initialized:
            cache.layers[i] = StaticLayer(max(rooms, default=otherwise))


def why_not(model: Any, cache: Cache) -> str | None:
    """Why a member cannot read at different tokens in its static cache; `None` if it can."""
    if getattr(cache, "offloading", False):
        return "its cache is offloaded"
    kinds = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in (StaticLayer, RaggedLayer)})
    if kinds:
        return f"its cache has layers that forget what they read ({', '.join(kinds)})"
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation not in _MASKS:
        return f"its attention is {config._attn_implementation!r}, which takes no mask by row: load it with `attn_implementation='sdpa'`"
    if other := sorted(set(get_layer_types_and_kwargs(config)[0]) - {"full_attention", "sliding_attention", "dummy"}):
        return f"it has layers of {', '.join(other)}"
    return None


def make_ragged(cache: Cache, rows: int) -> torch.Tensor:
    """
    Let the rows of a member's static cache, all of which end at one token, go on apart.

    Returns:
        `torch.LongTensor` of shape `(rows,)`: Where the next tokens go, which the cache goes by.
    """
    layers: list[Any] = list(cache.layers)
    ends = torch.full((rows,), int(cache.get_seq_length()), device=layers[0].keys.device)
    torch._dynamo.mark_static_address(ends)
    for layer in layers:
        layer.__class__ = RaggedLayer
        layer.ends = ends
    return ends


def make_even(cache: Cache) -> None:
    """Let the rows go on together, where the longest ends. (Shorter ones hold what they took back: see `EFTCache.uneven`.)"""
    for layer in cache.layers:
        if isinstance(layer, RaggedLayer):
            layer.cumulative_length.copy_(layer.ends.max())
            layer.__class__ = StaticLayer
            del layer.ends


def masks_of(model: Any, places: torch.Tensor, valid: torch.Tensor | None, room: int) -> Any:
    r"""
    What attention sees, in the form that a model takes.

    Args:
        model (`PreTrainedModel`): The member.
        places (`torch.LongTensor` of shape `(rows, n)`): Where the tokens go that are read.
        valid (`torch.BoolTensor` of shape `(rows, room)`, *optional*): `False` where a place is padding.
        room (`int`): How many places there are.

    Returns:
        `torch.Tensor` of shape `(rows, 1, n, room)`, or these by kind of layer.
    """
    config, columns = model.config.get_text_config(decoder=True), torch.arange(room, device=places.device)
    seen = columns <= places[..., None]  # (rows, n, room)
    if valid is not None:
        seen = seen & valid[:, None]
    window = getattr(config, "sliding_window", None)
    within = seen if window is None else seen & (columns > places[..., None] - window)

    def form(mask: torch.Tensor) -> torch.Tensor:
        # A query that sees nothing, as padding does, is let see all: its result is nobody's, and must be no NaN.
        mask = (mask | ~mask.any(-1, keepdim=True))[:, None]
        if config._attn_implementation == "sdpa":
            return mask
        return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill_(~mask, torch.finfo(model.dtype).min)

    if getattr(config, "layer_types", None) is not None:
        return {kind: form(within if kind == "sliding_attention" else seen) for kind in sorted(set(config.layer_types))}
    return form(within)
