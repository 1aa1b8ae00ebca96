"""The `generate` that is running: what it was given that it does not hand on to its logits processors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

from ..prompts.pictures import take_pictures

# What runs below the decorators.
_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__
# Models' own, which take logits processors by name and hand them to nothing when they make text: none of them is ever called.
_DROPPING = {"JanusForConditionalGeneration.generate"}


@dataclass(frozen=True)
class Running:
    """A call of `generate`: what it was given by name, a dictionary that is the call's own, and what it was given first."""

    given: dict[str, Any]
    first: Any

    def is_the_same(self, other: Running | None) -> bool:
        """Whether both are one call."""
        return other is not None and self.given is other.given

    @property
    def pictures(self) -> dict[str, Any]:
        """What it is shown."""
        return take_pictures(dict(self.given))

    @property
    def prompts(self) -> int | None:
        """How many prompts it has, where they are ids."""
        ids = self.given.get("input_ids") if self.first is None else self.first
        return len(ids) if isinstance(ids, torch.Tensor) else None


def running(processor: Any) -> Running | None:
    r"""
    The call of `generate` in this thread that a processor is one of, looked up among the calls that led here: transformers hands a
    processor ids and scores only, and pictures are what its models would have to see.

    Args:
        processor (`Any`): The processor.

    Returns:
        [`Running`]: The outermost such call; `None` if there is none, as in a loop of one's own.
    """
    found, frame = None, inspect.currentframe()
    while frame is not None:
        if frame.f_code is _GENERATE and any(each is processor for each in frame.f_locals.get("logits_processor") or ()):
            found = Running(frame.f_locals["kwargs"], frame.f_locals["inputs"])
        frame = frame.f_back
    return found


def refuse_dropping(models: Mapping[str, PreTrainedModel]) -> None:
    """Raise if the small models are of a kind whose own `generate` would leave the add-on out: their base is of that kind, too."""
    for name, model in models.items():
        if getattr(getattr(type(model), "generate", None), "__qualname__", None) in _DROPPING:
            raise ValueError(
                f"The member {name!r} ({type(model).__name__}) is of a kind whose own `generate` drops logits processors: a base of that "
                "kind would generate without what is added here. Combine them in `EFTForCausalLM.from_models(base, tuned=..., "
                "reference=...)`, for prompts of text."
            )
