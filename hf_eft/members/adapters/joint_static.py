"""Static caches of several members as one batch: every member's states are views of one store, and each counts its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, StaticCache, StaticLayer

from ..ragged import RaggedLayer


class StaticJoint:
    r"""
    Static caches of one shape, one behind the other along the batch, from the first tokens on. Nothing is ever copied, and no address
    changes, so that a step of it can be compiled and recorded.

    Args:
        caches (`Sequence[Cache]`): Those of the members, which are empty.
    """

    compiles = True

    def __init__(self, caches: Sequence[Cache]) -> None:
        layers: list[Any] = [JointLayer(parts) for parts in zip(*(cache.layers for cache in caches), strict=True)]
        cache = StaticCache.__new__(StaticCache)
        Cache.__init__(cache, layers=layers)
        self.cache: Cache = cache
        self.is_even = True  # whether all members have read the same, so far as anybody knows

    @staticmethod
    def fits(caches: Sequence[Cache]) -> bool:
        """Whether the caches are empty and hold all tokens, layer by layer as many."""
        if any(getattr(cache, "offloading", False) or len(cache.layers) != len(caches[0].layers) for cache in caches):
            return False
        layers = [layer for cache in caches for layer in cache.layers]
        return all(type(layer) is StaticLayer and not layer.is_initialized for layer in layers) and all(
            layer.max_cache_len == first.max_cache_len
            for cache in caches
            for layer, first in zip(cache.layers, caches[0].layers, strict=True)
        )

    def holds(self, caches: Sequence[Cache]) -> bool:
        """Whether the members' states are still those of the common store, and as many."""
        layers: list[Any] = list(self.cache.layers)
        return self.is_even and all(layer.holds([cache.layers[i] for cache in caches]) for i, layer in enumerate(layers))

    def gather(self, caches: Sequence[Cache]) -> None:
        """The states are where they are."""

    def scatter(self, caches: Sequence[Cache]) -> None:
        """They are the members' already."""

    def leave(self) -> bool:
        """Some member goes on alone, or is changed: until they are empty again, all do. Returns whether to keep this."""
        self.is_even = False
        return True

    def reset(self) -> bool:
        """All members are empty. Returns whether to keep this."""
        self.is_even = True
        return True


class JointLayer(RaggedLayer):
    """A layer of several members, which go on together or, as far as these do, each row where it ends; it counts in theirs."""

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__(parts[0].max_cache_len)
        self.parts = list(parts)
        self.views: list[tuple[torch.Tensor, torch.Tensor]] = []  # what each of them has for its states

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        for part, keys, values in zip(self.parts, *self._rows(key_states, value_states), strict=True):
            part.lazy_initialization(keys, values)
        self.cumulative_length = self.parts[0].cumulative_length
        for part, keys, values in zip(self.parts, *self._rows(self.keys, self.values), strict=True):
            part.keys, part.values = keys, values
            self.views.append((keys, values))
            for states in (keys, values) if not torch.compiler.is_compiling() else ():
                torch._dynamo.mark_static_address(states)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.parts[0], RaggedLayer):
            return super().update(key_states, value_states)
        states = StaticLayer.update(self, key_states, value_states)  # counts in the first
        for part in self.parts[1:]:
            part.cumulative_length.add_(key_states.shape[-2])
        return states

    @property
    def ends(self) -> torch.Tensor:  # type: ignore[override]  # there is none where the parts have none
        return torch.cat([part.ends for part in self.parts])

    def holds(self, layers: Sequence[Any]) -> bool:
        """Whether these are its parts, with the states that they were given."""
        if not self.is_initialized:
            return not any(layer.is_initialized for layer in layers)
        if type(layers[0]) not in (StaticLayer, RaggedLayer) or any(type(layer) is not type(layers[0]) for layer in layers):
            return False
        # Graphs are of states that stay where they are, which is looked at before.
        return torch.compiler.is_compiling() or all(
            layer is part and layer.keys is keys and layer.values is values
            for layer, part, (keys, values) in zip(layers, self.parts, self.views, strict=True)
        )

    def _rows(self, *states: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        return [each.chunk(len(self.parts)) for each in states]
