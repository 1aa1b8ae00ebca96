"""Several members' caches as one batch, and back: views of one store, so that nothing is copied from step to step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_STATES = ("keys", "values")


class Joint:
    r"""
    Caches of one shape, one behind the other along the batch.

    After a step every member's states are views of the common ones. If they still are before the next step, it goes on from there; those
    that were changed in between (rolled back, reordered, extended alone) are put together anew.
    """

    compiles = False  # whether a graph may go on from it

    def __init__(self) -> None:
        self.cache = DynamicCache()
        self._handed_out: list[dict[str, list[torch.Tensor]]] = []  # by layer

    def holds(self, caches: Sequence[Cache]) -> bool:
        """
        Whether it can go on from the caches: they hold attention states that grow, layer by layer of one kind and one length. (Those that
        it does not have are put together anew.)
        """
        if any(getattr(cache, "offloading", False) or len(cache.layers) != len(caches[0].layers) for cache in caches):
            return False
        return all(_alike(layers) for layers in zip(*(cache.layers for cache in caches), strict=True))

    def leave(self) -> bool:
        """Some member goes on alone. Returns whether to keep this: such members need no common states."""
        return False

    def reset(self) -> bool:
        """All members are empty. Returns whether to keep this."""
        return False

    def gather(self, caches: Sequence[Cache]) -> None:
        """Take the caches' states."""
        known, before = self.cache.layers, self._handed_out
        self.cache.layers = [
            _together(layers, known[i] if i < len(before) else None, before[i] if i < len(before) else {})
            for i, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True))
        ]

    def scatter(self, caches: Sequence[Cache]) -> None:
        """Give every cache its rows."""
        self._handed_out = []
        for i, layer in enumerate(self.cache.layers):
            parts = {name: _parts(getattr(layer, name), len(caches)) for name in _STATES}
            for j, cache in enumerate(caches):
                if i == len(cache.layers):  # a cache made without a configuration gets its layers with its first states
                    cache.layers.append(type(layer)())
                vars(cache.layers[i]).update(vars(layer))
                for name in _STATES:
                    setattr(cache.layers[i], name, parts[name][j])
            self._handed_out.append(parts)


def _alike(layers: Sequence[Any]) -> bool:
    first = layers[0]
    return all(
        type(layer) is type(first)
        and type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
        and layer.is_initialized == first.is_initialized
        and layer.get_seq_length() == first.get_seq_length()
        for layer in layers
    )


def _together(layers: Sequence[Any], known: Any, handed_out: dict[str, list[torch.Tensor]]) -> Any:
    joint = copy.copy(layers[0])
    for name in _STATES:
        states = [getattr(layer, name) for layer in layers]
        if all(mine is given for mine, given in zip(states, handed_out.get(name, ()), strict=False)) and name in handed_out:
            setattr(joint, name, getattr(known, name))
        elif _has_rows(states[0]):
            setattr(joint, name, torch.cat(states))
    return joint


def _has_rows(states: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    """Whether these are states of rows, be it of no token: those that were rolled back to the beginning still have their rows."""
    return states is not None and states.dim() > 1


def _parts(states: torch.Tensor | None, count: int) -> list[Any]:
    if not _has_rows(states):
        return [states] * count
    rows = states.shape[0] // count
    return [states.narrow(0, i * rows, rows) for i in range(count)]
