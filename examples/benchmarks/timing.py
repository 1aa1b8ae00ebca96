"""Times of several things that are compared, and the bare forwards that they are compared with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from transformers import DynamicCache

from hf_eft.members.releases import CACHE
from hf_eft.programs.timing import in_turn, ratio, seconds

__all__ = ["Bare", "in_turn", "milliseconds", "ratio", "seconds"]


class Bare:
    """A model on a cache of its own, a token at a time: nothing but its forward. (A wrapper makes its cache out of an empty one.)"""

    def __init__(self, model: Any, prompt: torch.Tensor) -> None:
        self.model, self.token = model, prompt[:, -1:]
        self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        for chunk in prompt.split(512, dim=1):
            self.read(chunk)

    def read(self, tokens: torch.Tensor) -> Any:
        return self.model(tokens, use_cache=True, logits_to_keep=1, **{CACHE: self.cache})

    def __call__(self) -> Any:
        return self.read(self.token)


def milliseconds(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Medians."""
    return {name: round(1000 * statistics.median(values), 3) for name, values in times.items()}
