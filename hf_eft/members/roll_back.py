"""Roll-back of recurrent states: they forget what they have read, so they are kept, put back, and read again from there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from .recurrent import is_recurrent


def crop(layer: Any, tokens: int) -> None:
    """Let a layer forget its last `tokens` tokens; of a recurrent one, what attends. Its states are put back from a [`Mark`]."""
    if not is_recurrent(layer):
        layer.crop(-tokens)
        return
    for kind in (DynamicSlidingWindowLayer, DynamicLayer):
        if isinstance(layer, kind):
            kind.crop(layer, -tokens)
            break
    if layer.record_past:
        for i, states in layer.conv_states.items():
            layer.conv_states[i] = None if states is None else states[..., -layer.conv_kernel_size[i] :]


class Mark:
    """
    The recurrent states of a member's cache as they are now, `(rows, ...)` each. They are copied: models write to them in place.

    Args:
        cache (`Cache`): The cache. One without recurrent layers leaves an empty mark.
    """

    def __init__(self, cache: Cache) -> None:
        self._states = {i: _copied(layer) for i, layer in enumerate(cache.layers) if is_recurrent(layer)}

    def put_back(self, cache: Cache) -> None:
        """Make the recurrent layers what they were."""
        for i, states in self._states.items():
            for kind, values in states.items():
                setattr(cache.layers[i], kind, {n: None if each is None else each.clone() for n, each in values.items()})

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows, `(rows,)`, as the cache does."""
        for states in self._states.values():
            for values in states.values():
                for n, each in values.items():
                    values[n] = None if each is None else each.index_select(0, rows.to(each.device))


def branch(cache: Cache, mark: Mark, rows: torch.Tensor | None = None, read: int = 0) -> Cache:
    r"""
    A cache as it was before the last `read` tokens, or some of its rows, in a cache of their own.

    Args:
        cache (`Cache`): A member's cache. Left as it is.
        mark ([`Mark`]): Its recurrent states at that time.
        rows (`torch.LongTensor` of shape `(chosen,)`, *optional*): Which rows; all by default.
        read (`int`, *optional*, defaults to 0): How many tokens it has read since.
    """
    other = DynamicCache()
    other.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in other.layers:
        if cache.offloading:
            layer.prefetch()
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.conv_states, layer.recurrent_states = dict(layer.conv_states), dict(layer.recurrent_states)
    mark.put_back(other)
    for layer in other.layers if read else ():
        crop(layer, read)
    if rows is not None:
        other.reorder_cache(rows)
    return other


_GOES_ON: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()  # what was found out, by model


def goes_on(model: Any, read: Callable[[Cache], Any], cache: Cache) -> bool:
    r"""
    Whether a model that is given several tokens goes on from the recurrent states that it has. Some start from nothing, without a word.
    Told by what it does, once: states of other values must lead to other states.

    Args:
        model (`PreTrainedModel`): The model.
        read (`Callable[[Cache], Any]`): Lets it read the tokens.
        cache (`Cache`): Its cache, which has read others. Left as it is.
    """
    if not any(map(is_recurrent, cache.layers)):
        return False  # it keeps its states elsewhere
    if model not in _GOES_ON:
        _GOES_ON[model] = _goes_on(read, cache)
    return _GOES_ON[model]


def _goes_on(read: Callable[[Cache], Any], cache: Cache) -> bool:
    ends = []
    for shift in (0.0, 1.0):
        other = branch(cache, Mark(cache))
        for layer in filter(is_recurrent, other.layers):
            layer.recurrent_states = {n: None if s is None else s + shift for n, s in layer.recurrent_states.items()}
        read(other)
        first = next(layer for layer in other.layers if is_recurrent(layer))  # those behind it read what it says
        ends.append(next(states for states in first.recurrent_states.values() if states is not None))
    return not torch.equal(ends[0], ends[1])


def take(cache: Cache, other: Cache, rows: torch.Tensor) -> None:
    """Write the recurrent states of a branch into the rows that it was made of."""
    for layer, source in zip(cache.layers, other.layers, strict=True):
        if not is_recurrent(layer):
            continue
        for n, states in layer.recurrent_states.items():
            if states is not None:
                states.index_copy_(0, rows.to(states.device), source.recurrent_states[n].to(states.dtype))
        for n, states in layer.conv_states.items():
            if states is not None:
                width = layer.conv_kernel_size[n]
                states = _as_wide(states, width)
                layer.conv_states[n] = states.index_copy(0, rows.to(states.device), _as_wide(source.conv_states[n], width))


def _copied(layer: Any) -> dict[str, dict[int, torch.Tensor | None]]:
    return {
        kind: {n: None if each is None else each.clone() for n, each in getattr(layer, kind).items()}
        for kind in ("conv_states", "recurrent_states")
    }


def _as_wide(states: torch.Tensor, width: int) -> torch.Tensor:
    """The last `width` columns; what came before the first token is zero."""
    states = states[..., -width:]
    return torch.nn.functional.pad(states, (width - states.shape[-1], 0))


# What layers of some models keep beside keys and values, in which rows cannot be moved, and what such a cache is.
_BESIDE = {
    "indexer_keys": "a cache with an index of keys (sparse attention)",
    "prefill_keys": "a cache that keeps the prompt apart",
}


def why_not_moved(layer: Any) -> str | None:
    """What kind of cache a layer is of in which rows cannot be moved; `None` if they can."""
    return next((kind for name, kind in _BESIDE.items() if hasattr(layer, name)), None)


def shift_rows(layer: Any, shift: torch.Tensor) -> None:
    """Move each row's states to the right by its shift. What falls in on the left is padding, or older than a window."""
    if (kind := why_not_moved(layer)) is not None:
        raise ValueError(
            f"Rows that keep different numbers of drafted tokens cannot be brought into line in {kind}. Speculate with one row at a time."
        )
    if isinstance(layer, LinearAttentionCacheLayerMixin) and not is_recurrent(layer):
        for i, states in layer.conv_states.items():
            if states is not None:
                layer.conv_states[i] = _shifted(states, shift, dim=-1)
    if getattr(layer, "is_initialized", False) and layer.keys is not None:
        layer.keys = _shifted(layer.keys, shift, dim=-2)
        layer.values = _shifted(layer.values, shift, dim=-2)


def _shifted(states: torch.Tensor, shift: torch.Tensor, dim: int) -> torch.Tensor:
    length = states.shape[dim]
    places = torch.arange(length, device=states.device)[None]
    source = (places - shift.to(states.device)[:, None]).clamp(min=0)  # (rows, length)
    shape = [1] * states.dim()
    shape[0], shape[dim] = source.shape
    return states.gather(dim, source.view(shape).expand(states.shape))


def trim_left(layer: Any, columns: int) -> None:
    """Forget the first columns. A sliding layer that does not hold them any more only counts them off."""
    if not isinstance(layer, DynamicLayer) or not layer.is_initialized:
        return
    left = layer.get_seq_length() - columns
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = left
    start = max(0, layer.keys.shape[-2] - left)
    layer.keys, layer.values = layer.keys[..., start:, :], layer.values[..., start:, :]
