"""Skipping, for the tests: recipes under which members have no say at times, and who was really run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import thinking
import torch
from families import PAD
from thinking import PLAN, THINK

from hf_eft import Combination, EFTForCausalLM, Rule, Truncation

# An end token among eight comes soon: rows of a batch end at different steps.
OPTIONS: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": PAD}


def in_doubt(log_probs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A strength that the base alone says: 0 where it is sure."""
    return torch.where(log_probs["base"].amax(-1).exp() > 0.55, 0.0, 0.7)


# By what leaves members out; every one does so in some steps and not in others.
RECIPES: dict[str, Combination] = {
    "truncation": Combination.emulate(alpha=0.8, truncation=Truncation("base", 0.6)),
    "plausible": Combination.emulate(alpha=0.8, truncation=Truncation("plausible", 0.4)),
    "schedule": Combination.emulate(alpha=[0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.7, 0.9, 0.0, 0.0, 0.0, 0.0, 0.8, 0.0]),
    "phases": Combination.emulate(alpha={"think": 0.0, "plan": 0.0, "answer": 0.9}, phases=[THINK, PLAN]),
    "one member": Combination({"base": 1.0, "tuned": [0.8, 0.0, 0.0, 0.7, 0.0], "reference": -0.2}),
    "by tuned": Combination.emulate(alpha=[0.0, 0.8, 0.0, 0.0, 0.8, 0.0], truncation=Truncation("drop", 0.9)),
    "rule": Combination.emulate(alpha=Rule.of(in_doubt, reads=["base"])),
}


def model(recipe: Combination, **members: Any) -> EFTForCausalLM:
    return thinking.model(recipe, **members)


@contextmanager
def counted(*models: Any) -> Iterator[dict[Any, list[int]]]:
    """How many tokens each of these models reads, forward by forward."""
    read: dict[Any, list[int]] = {each: [] for each in models}

    def note(model: Any, args: Any, kwargs: Any) -> None:
        read[model].append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1])

    hooks = [each.register_forward_pre_hook(note, with_kwargs=True) for each in read]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()
