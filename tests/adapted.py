"""Adapters of every kind, the full models that they amount to, and what PEFT says while they are made."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from families import build

from hf_eft import EFTForCausalLM

_SAID = (
    "`is_gradient_checkpointing` is deprecated",
    "fan_in_fan_out is set",
    "Already found a `peft_config`",
    "The following",
    "Unsupported layer type",
)

# What PEFT says while adapters are made.
PEFT_SAYS = [pytest.mark.filterwarnings(f"ignore:{said}") for said in _SAID]
LLAMA_LINEAR = ["q_proj", "v_proj", "down_proj"]


def lora(**options: Any) -> peft.LoraConfig:
    chosen = {"r": 4, "lora_alpha": 16, "target_modules": LLAMA_LINEAR, "init_lora_weights": False, **options}
    return peft.LoraConfig(task_type="CAUSAL_LM", **chosen)


# What the adapter is, and whether it can share one pass with the model under it.
KINDS: dict[str, tuple[Any, bool]] = {
    "lora": (lambda: lora(), True),
    "all-linear": (lambda: lora(target_modules="all-linear"), True),
    "rslora": (lambda: lora(use_rslora=True), True),
    "ranks": (lambda: lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}), True),
    "lora_bias": (lambda: lora(target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True), True),
    "some layers": (lambda: lora(layers_to_transform=[1]), True),
    "head and embeddings": (lambda: lora(modules_to_save=["lm_head", "embed_tokens"]), True),
    "dora": (lambda: lora(use_dora=True), False),
    "on embeddings": (lambda: lora(target_modules=["embed_tokens", "q_proj"]), False),
    "tokens": (lambda: lora(trainable_token_indices={"embed_tokens": [5, 9, 11]}), False),
    "norm": (lambda: lora(modules_to_save=["norm"]), False),
    "ia3": (lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), False),
    "loha": (lambda: peft.LoHaConfig(r=4, target_modules=LLAMA_LINEAR), False),
    "lokr": (lambda: peft.LoKrConfig(r=4, target_modules=LLAMA_LINEAR), False),
    "oft": (lambda: peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj", "down_proj"]), False),
    "vera": (lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], d_initial=0.5), False),
}

FAMILY_OF = {"lora_bias": "gpt2"}  # its linear layers have biases


def adapted(kind: str = "lora", family: str = "llama", seed: int = 1, name: str = "default") -> tuple[Any, Any]:
    """A `PeftModel` whose adapter matters, and the model under it (in which PEFT has put its layers)."""
    small = build(family, seed)
    model = peft.get_peft_model(small, KINDS[kind][0](), adapter_name=name).eval()
    shake(model)
    return model, small


def shake(model: Any, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def merged(model: Any) -> Any:
    return copy.deepcopy(model).merge_and_unload().eval()


def plain(family: str = "llama", seed: int = 1) -> Any:
    return build(family, seed)


def same(model: EFTForCausalLM, oracle: EFTForCausalLM, inputs: dict[str, Any], **options: Any) -> None:
    options = {"max_new_tokens": 10, "do_sample": False, **options}
    assert model.generate(**inputs, **options).tolist() == oracle.generate(**inputs, **options).tolist()
