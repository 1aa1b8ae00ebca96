"""Adapters that cannot be members, or of which it is not clear which is meant, are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapted import PEFT_SAYS, adapted, lora, plain
from families import build, shared

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor

pytestmark = PEFT_SAYS


def refuse(match: str, kind: type[Exception] = ValueError, base: Any = None, **members: Any) -> None:
    with pytest.raises(kind, match=match):
        EFTForCausalLM.from_models(base or shared("llama", 0), **members)
    if base is None:
        with pytest.raises(kind, match=match):
            EFTLogitsProcessor(**members)


def test_methods_that_cannot_be_members() -> None:
    prompt = peft.get_peft_model(plain(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    refuse("'default' of the member 'tuned' is of the method PROMPT_TUNING; adapters of LORA", tuned=prompt)
    norm = peft.get_peft_model(plain(), peft.LNTuningConfig(target_modules=["norm"]))
    refuse("method LN_TUNING", tuned=norm)
    mixed = peft.get_peft_model(plain(), lora(), mixed=True)
    refuse("'tuned' is a PeftMixedModel", tuned=mixed)
    activated = peft.get_peft_model(plain(), lora(alora_invocation_tokens=[5, 6]))
    refuse("`alora_invocation_tokens`: it is switched on by tokens", tuned=activated)


def test_weights_under_an_adapter_that_are_not_what_they_were() -> None:
    model = peft.get_peft_model(plain(), lora(init_lora_weights="pissa")).eval()
    refuse("'reference' is to be the model under the adapter 'default', which took a part of the weights out", tuned=model)
    EFTForCausalLM.from_models(shared("llama", 0), tuned=model, reference=plain())  # a reference of its own is right
    refuse(
        "trained the model's own biases", tuned=peft.get_peft_model(plain("gpt2"), lora(target_modules=["c_attn"], bias="all"))
    )
    merged_in, _ = adapted()
    merged_in.merge_adapter()
    refuse("merged into the weights of the model of the member 'tuned'", tuned=merged_in)
    refuse("of the member 'reference'", tuned=shared("qwen3", 4), reference=merged_in)


def test_which_adapter_is_meant() -> None:
    model, small = adapted()
    model.add_adapter("second", lora())
    refuse("'default', 'second'.*say how they are weighted", tuned=model)
    refuse(
        r"'x' has the adapters \['default', 'second'\]: which\?", tuned={"x": model}, combination=Combination.steer({"x": 1})
    )
    first, second = peft.PeftModel(small := plain(), lora()), peft.PeftModel(small, lora())
    refuse("'b' is one of two `PeftModel`s", tuned={"a": first, "b": second}, combination=Combination.steer({"a": 1, "b": 1}))


def test_folders_that_are_refused(tmp_path: Path) -> None:
    model, _ = adapted()
    model.save_pretrained(tmp_path)
    refuse("no model to put it on", tuned=tmp_path, combination=Combination({"tuned": 1.0}), base=tmp_path)
    with pytest.raises(ValueError, match="no model to put it on"):
        EFTLogitsProcessor(tmp_path)
    refuse("'tuned' in .* does not fit the model LlamaForCausalLM", tuned=tmp_path, reference=build("llama", 1, hidden_size=64))
    path, kept = tmp_path / "adapter_config.json", (tmp_path / "adapter_config.json").read_text()

    def with_setting(**settings: Any) -> None:
        path.write_text(json.dumps({**json.loads(kept), **settings}))

    for settings, message in (
        ({"run": "me"}, "settings that this version of PEFT does not know: run"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "`megatron_config`"),
        ({"peft_type": "XLORA"}, "method 'XLORA'"),
        ({"init_lora_weights": "pissa"}, "would change your model"),
        ({"bias": "all"}, "would change your model"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "`layer_replication`"),
    ):
        with_setting(**settings)
        refuse(message, tuned=tmp_path, reference=plain())
    with_setting()
    weights = tmp_path / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    for key in ("base_model.model.lm_head.weight", "base_model.model.model.layers.0.self_attn.q_proj.base_layer.lora_A.weight"):
        save_file({**tensors, key: torch.zeros(64, 32)}, weights, metadata={"format": "pt"})
        refuse("the model's own weights", tuned=tmp_path, reference=plain())
    weights.rename(tmp_path / "adapter_model.bin")
    refuse("Pickled weights are not read", tuned=tmp_path, reference=plain())


def test_what_adapters_cannot_do_yet() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    with pytest.raises(ValueError, match="Resize that model before"):
        eft.resize_token_embeddings(70)
