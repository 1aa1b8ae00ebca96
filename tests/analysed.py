"""A prompt and what is said after it, combinations of every kind to be analysed, and what their members say alone."""

from __future__ import annotations

from typing import Any

import oracle
import torch
from families import shared

from hf_eft import Combination, EFTForCausalLM

PROMPT = torch.tensor([5, 9, 30, 11])
SAID = torch.tensor([7, 40, 3, 22, 61, 18])
WHOLE = torch.cat([PROMPT, SAID])

RECIPES: dict[str, tuple[dict[str, Any], Combination]] = {
    "emulate": ({"base": ("llama", 0), "tuned": ("gpt2", 1), "reference": ("opt", 2)}, Combination.emulate(alpha=0.7)),
    "steer": (
        {"base": ("gemma3", 0), "helpful": ("gpt2", 1), "brief": ("qwen3", 3), "reference": ("gpt2", 2)},
        Combination.steer({"helpful": 0.7, "brief": 0.4}),
    ),
    "interpolate": ({"tuned": ("mistral", 1), "reference": ("lfm2", 2)}, Combination.interpolate(0.6)),
    "mix": ({"kind": ("llama", 1), "brief": ("mamba", 2)}, Combination.mix({"kind": 0.5, "brief": 0.5})),
    "schedule": (
        {"base": ("llama", 0), "tuned": ("gpt2", 1), "reference": ("gpt2", 2)},
        Combination.emulate(alpha=[1.0, 0.2, 1.7]),
    ),
}


def models_of(recipe: str) -> dict[str, Any]:
    return {name: shared(*what) for name, what in RECIPES[recipe][0].items()}


def model_of(recipe: str, combination: Combination | None = None) -> EFTForCausalLM:
    models = models_of(recipe)
    tuned = {name: model for name, model in models.items() if name not in ("base", "reference")} or None
    return EFTForCausalLM.from_models(
        models.get("base"), tuned=tuned, reference=models.get("reference"), combination=combination or RECIPES[recipe][1]
    )


def alone(model: Any, prompt: torch.Tensor = PROMPT, said: torch.Tensor = SAID) -> torch.Tensor:
    """A model's own log-probs at every token of the continuation, one stateless forward for each: (tokens, vocab)."""
    whole = torch.cat([prompt, said])
    return torch.stack([oracle.log_probs({"it": model}, {"it": 1.0}, whole[: len(prompt) + i]) for i in range(len(said))])
