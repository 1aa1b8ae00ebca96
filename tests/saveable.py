"""Combinations of every kind that a folder brings back, and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from families import build, lora, prompts

from hf_eft import Combination, EFTForCausalLM, Truncation

# What PEFT says while adapters are made.
PEFT_SAYS = [
    pytest.mark.filterwarnings(f"ignore:{said}")
    for said in ("`is_gradient_checkpointing` is deprecated", "fan_in_fan_out is set", "Already found a `peft_config`")
]


def three(**options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(build("llama", 0), tuned=build("gpt2", 1), reference=build("gpt2", 2), **options)


def shared() -> EFTForCausalLM:
    base = build("llama", 0)
    return EFTForCausalLM.from_models(base, tuned=build("gpt2", 1), reference=base)


def tied() -> EFTForCausalLM:
    base = build("llama", 0, tie_word_embeddings=True)
    return EFTForCausalLM.from_models(base, tuned=build("opt", 1), reference=build("gpt2", 2))


def steered() -> EFTForCausalLM:
    tuned = {"helpful": build("llama", 1), "brief": build("llama", 3)}
    recipe = Combination.steer({"helpful": 0.7, "brief": 0.4}, Truncation("base", 0.9))
    return EFTForCausalLM.from_models(build("llama", 0), tuned=tuned, reference=build("llama", 2), combination=recipe)


def mixed() -> EFTForCausalLM:
    small = [build("gpt2", seed).to(torch.bfloat16) for seed in (1, 2)]
    return EFTForCausalLM.from_models(build("llama", 0), tuned=small[0], reference=small[1])


def adapter(**options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(build("llama", 0), tuned=lora(build("llama", 1), **options))


def adapters() -> EFTForCausalLM:
    small = lora(build("llama", 1), ("helpful", "brief"))
    recipe = Combination.steer({"helpful": 0.7, "brief": 0.4})
    return EFTForCausalLM.from_models(build("gpt2", 0), tuned=small, combination=recipe)


def realigned() -> EFTForCausalLM:
    return EFTForCausalLM.from_models(None, tuned=lora(build("llama", 1)), combination=Combination.interpolate(0.6))


def objectives() -> EFTForCausalLM:
    """Adapters on a model that is no member."""
    small = lora(build("llama", 1), ("polite", "brief"))
    return EFTForCausalLM.from_models(None, tuned=small, combination=Combination.mix({"polite": 0.5, "brief": 0.5}))


def other_reference() -> EFTForCausalLM:
    """An adapter on a model that is no member, and a reference of another kind."""
    tuned = lora(build("llama", 1))
    return EFTForCausalLM.from_models(build("gpt2", 0), tuned=tuned, reference=build("gpt2", 2))


def on_the_base() -> EFTForCausalLM:
    base = build("llama", 1)
    return EFTForCausalLM.from_models(base, tuned=lora(base), reference=build("llama", 2))


def twice() -> EFTForCausalLM:
    """One adapter as two members."""
    small = lora(build("llama", 1))
    recipe = Combination({"base": 1.0, "a": 0.5, "b": 0.3, "reference": -0.8})
    return EFTForCausalLM.from_models(build("gpt2", 0), tuned={"a": small, "b": small}, combination=recipe)


def loaded_by_transformers() -> EFTForCausalLM:
    small = build("llama", 1)
    source = lora(build("llama", 1), ("mine",))
    state = peft.get_peft_model_state_dict(source, adapter_name="mine")
    small.load_adapter(peft_config=source.peft_config["mine"], adapter_state_dict=state, adapter_name="mine")
    return EFTForCausalLM.from_models(build("gpt2", 0), tuned=small, reference=small)


COMPOSITIONS: dict[str, Callable[[], EFTForCausalLM]] = {
    "three": lambda: three(beta=1.5),
    "shared": shared,
    "tied": tied,
    "steered": steered,
    "contrast": lambda: EFTForCausalLM.from_models(
        build("llama", 0), reference=build("llama", 2), combination=Combination.contrast(0.5, 0.1)
    ),
    "schedule": lambda: three(alpha=[1.0, 0.5]),
    "mixed dtypes": mixed,
    "adapter": adapter,
    "adapters": adapters,
    "heads": lambda: adapter(modules_to_save=["lm_head"]),
    "dora": lambda: adapter(use_dora=True),
    "embeddings": lambda: adapter(target_modules=["embed_tokens", "q_proj"]),
    "tokens": lambda: adapter(trainable_token_indices={"embed_tokens": [5, 9]}),
    "realigned": realigned,
    "objectives": objectives,
    "other reference": other_reference,
    "on the base": on_the_base,
    "twice": twice,
    "loaded by transformers": loaded_by_transformers,
    **{
        family: lambda family=family: EFTForCausalLM.from_models(
            build(family, 0), tuned=build(family, 1), reference=build(family, 2)
        )
        for family in ("mixtral", "gemma3", "lfm2", "mamba", "falcon")
    },
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**prompts("left")).logits
