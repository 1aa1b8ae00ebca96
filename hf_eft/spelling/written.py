"""The texts that rows of a cache have read, kept beside it, so that a step adds its ids and does not put texts together anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from .lane import Lane


def held(cache: Cache) -> torch.Tensor:
    """What a cache of ids holds: another tensor after every change, be it a step, a roll-back or another order of rows."""
    return cache.layers[0].keys


@dataclass(eq=False)
class Written:
    r"""
    What rows have read.

    Args:
        keys (`torch.Tensor`, *optional*): What their cache holds of it; `None` if there is no cache.
        seen (`np.ndarray` of shape `(rows, ids)`): 0 where an id is padding.
        texts (`list[bytes]`): The ids of each row as int32, without padding.
        boundaries (`list[int]`): Where each row's prompt ends.
        lane ([`Lane`], *optional*): What reads on, if nothing but tensors is needed. Texts are then those with which it began.
    """

    keys: torch.Tensor | None
    seen: Any
    texts: list[bytes]
    boundaries: list[int]
    lane: Lane | None = None

    @classmethod
    def of(cls, keys: torch.Tensor | None, seen: Any, ids: Any, ends: Any) -> Written:
        """From the ids of rows and, beside each, where the prompt ends, both `(rows, ids)`."""
        return cls(keys, seen, _texts(ids, seen), (ends * seen).max(-1).tolist())

    def goes_on(self, cache: Cache | None, seen: Any) -> bool:
        """Whether this is what a cache holds, seen as it was."""
        return cache is not None and held(cache) is self.keys and np.array_equal(seen, self.seen)

    @property
    def lengths(self) -> Any:
        """How many ids each row has, `(rows, 1)`."""
        return np.array([[len(text) // np.dtype(np.int32).itemsize] for text in self.texts])

    def longer(self, keys: torch.Tensor, seen: Any, ids: Any) -> Written:
        """The same with more ids behind it, `(rows, new)`, which are no prompt."""
        new = _texts(ids, seen[:, -ids.shape[1] :])
        return Written(keys, seen, [text + more for text, more in zip(self.texts, new, strict=True)], self.boundaries)


def _texts(ids: Any, seen: Any) -> list[bytes]:
    narrow = ids.astype(np.int32)
    if seen.all():
        return [row.tobytes() for row in narrow]
    return [row[kept].tobytes() for row, kept in zip(narrow, seen.astype(bool), strict=True)]
