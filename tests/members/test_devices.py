"""Where a model is said to be: where its first weight is, as transformers has it, or where it says so itself."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from families import FAMILIES, build, shared
from peft import LoraConfig, get_peft_model

from hf_eft import EFTForCausalLM, tiny
from hf_eft.bytes import ByteLevelModel
from hf_eft.members.devices import execution_device, weights_device


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_where_transformers_has_it(family: str) -> None:
    model = build(family, 0)
    assert weights_device(model) == model.device
    name, first = next(model.named_parameters())
    holder, _, name = name.rpartition(".")
    setattr(model.get_submodule(holder), name, torch.nn.Parameter(first.to("meta")))  # and all others are where they were
    assert weights_device(model).type == model.device.type == "meta"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_models_around_models_say_where_these_are() -> None:
    base, *_, tokenizer = tiny.load()
    spelled = ByteLevelModel(base, tokenizer)
    adapted = get_peft_model(build("llama", 0), LoraConfig(target_modules=["q_proj"]))
    whole = EFTForCausalLM.from_models(*(shared("llama", seed) for seed in (0, 1, 2)))
    for model in (spelled, adapted, whole):
        assert weights_device(model) == execution_device(model) == torch.device("cpu")


def test_a_model_around_one_that_is_offloaded_is_where_that_computes() -> None:
    base, *_, tokenizer = tiny.load()
    away = cpu_offload(base, execution_device="cpu")
    assert weights_device(away).type == "meta"
    assert weights_device(ByteLevelModel(away, tokenizer)) == execution_device(away) == torch.device("cpu")


def test_a_module_may_say_where_it_is() -> None:
    module = torch.nn.Linear(1, 1)
    assert weights_device(module).type == "cpu"
    module.device = torch.device("meta")
    assert weights_device(module).type == "meta"


def test_without_weights_it_is_nowhere() -> None:
    with pytest.raises(ValueError, match="with weights, got a Dropout that has none"):
        weights_device(torch.nn.Dropout())
