"""Adapters as they are given, models, folders or loaded by transformers: they are left as they are, with one copy and one pass for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import KINDS, PEFT_SAYS, adapted, lora, merged, plain, same
from families import prompts, shared

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.releases import cache_of

pytestmark = PEFT_SAYS


def _picture(model: Any) -> dict[str, Any]:
    return {
        "types": [(name, type(module), module.training) for name, module in model.named_modules()],
        "modules": [id(module) for module in model.modules()],
        "weights": {name: (id(p), p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()},
        "config": model.config.to_dict(),
        "attributes": {key for key in vars(model) if key != "_previous_max_cache_length"},
        "adapters": [(m.active_adapters, m.disable_adapters) for m in model.modules() if hasattr(m, "lora_A")],
    }


def _unchanged(model: Any, before: dict[str, Any]) -> None:
    after = _picture(model)
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert weights[0].keys() == weights[1].keys()
    for name, (place, values, needed) in weights[0].items():
        assert (place, needed) == (weights[1][name][0], weights[1][name][2])
        assert torch.equal(values, weights[1][name][1])


@pytest.mark.parametrize("kind", ["lora", "dora", "head and embeddings", "tokens", "ia3", "vera"])
def test_folders(kind: str, tmp_path: Path) -> None:
    model, _ = adapted(kind)
    model.save_pretrained(tmp_path)
    reference, base = plain(), shared("llama", 0)
    before = _picture(reference)
    eft = EFTForCausalLM.from_models(base, tuned=str(tmp_path), reference=reference)
    oracle = EFTForCausalLM.from_models(base, tuned=model)
    same(eft, oracle, prompts("left"))
    assert eft.members["reference"] is reference
    assert bool(eft._members.stacks) == KINDS[kind][1]
    assert EFTLogitsProcessor(tmp_path, reference)._members.names == ("tuned", "reference")
    assert EFTForCausalLM.from_models(reference, tuned=tmp_path).members["reference"] is reference
    _unchanged(reference, before)


def test_two_folders_on_one_reference(tmp_path: Path) -> None:
    full = {}
    for i, kind in enumerate(("lora", "all-linear")):
        model, _ = adapted(kind)
        model.save_pretrained(tmp_path / f"a{i}")
        full[f"a{i}"] = merged(model)
    weights = Combination.steer({"a0": 0.5, "a1": 0.5})
    reference, base = plain(), shared("llama", 0)
    eft = EFTForCausalLM.from_models(
        base, tuned={name: tmp_path / name for name in full}, reference=reference, combination=weights
    )
    assert eft._members.stacks[0].names == ("a0", "a1", "reference")
    same(eft, EFTForCausalLM.from_models(base, tuned=full, reference=reference, combination=weights), prompts("left"))


def test_an_adapter_loaded_by_transformers(tmp_path: Path) -> None:
    model, _ = adapted()
    model.save_pretrained(tmp_path)
    small = plain()
    small.load_adapter(str(tmp_path))
    small.eval()
    base, oracle = shared("llama", 0), EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    for reference in (None, small):
        eft = EFTForCausalLM.from_models(base, tuned=small, reference=reference)
        same(eft, oracle, prompts("left"))
        assert eft._members.stacks


def test_adapters_loaded_by_transformers_one_of_which_is_on() -> None:
    from peft import get_peft_model_state_dict
    from peft.functional import set_adapter

    model, _ = adapted()
    small = plain()
    for name in ("one", "other"):
        state = get_peft_model_state_dict(model)
        small.load_adapter(peft_config=model.peft_config["default"], adapter_state_dict=state, adapter_name=name)
    set_adapter(small, ["one", "other"])
    with pytest.raises(ValueError, match=r"\['one', 'other'\] are on together.*`from peft.functional import set_adapter"):
        EFTForCausalLM.from_models(shared("llama", 0), tuned=small)
    set_adapter(small, "other")  # as the error says, with any release of PEFT
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    same(EFTForCausalLM.from_models(shared("llama", 0), tuned=small.eval()), oracle, prompts("left"))


@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_user_s_is_changed(training: bool) -> None:
    model, _ = adapted("head and embeddings")
    model.add_adapter("other", lora(use_dora=True))
    model.set_adapter("other")
    model.train(training)
    before = _picture(model)
    eft = EFTForCausalLM.from_models(
        shared("llama", 0), tuned={"default": model}, combination=Combination.steer({"default": 1})
    )
    eft.generate(**prompts("left"), max_new_tokens=4)
    eft.generate(**prompts("left"), max_new_tokens=4, assistant_model=eft.members["default"])
    _unchanged(model, before)


# One copy, one pass ---------------------------------------------------------------------------------------------------


def test_weights_are_there_once() -> None:
    model, _ = adapted("all-linear")
    eft = EFTForCausalLM.from_models(None, tuned=model, combination=Combination.interpolate(0.5))
    small = plain()
    assert eft.num_parameters() == model.num_parameters() == small.num_parameters() + model.get_nb_trainable_parameters()[0]
    stores = {p.data_ptr() for stack in eft._members.stacks for p in stack.member.model.parameters()}
    assert stores <= {p.data_ptr() for p in model.parameters()}


def test_views_follow_when_the_model_is_cast() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 4), tuned=model)
    expected = eft(**prompts("left")).logits
    for move in (lambda: model.to(torch.float64), lambda: eft._members.models["tuned"].to(torch.float64)):
        move()
        outputs = eft.member_logits(**prompts("left"))
        assert outputs["tuned"].dtype == torch.float64
        torch.testing.assert_close(eft(**prompts("left")).logits, expected, atol=1e-3, rtol=1e-3)


def test_one_pass_and_no_copies_from_step_to_step() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    stack = eft._members.stacks[0]
    calls = {"stack": 0, "alone": 0}
    stack.member.model.register_forward_hook(lambda *_: calls.update(stack=calls["stack"] + 1))
    for name in ("tuned", "reference"):
        eft.members[name].register_forward_hook(lambda *_: calls.update(alone=calls["alone"] + 1))
    out = eft.generate(**prompts("left"), max_new_tokens=6, min_new_tokens=6, return_dict_in_generate=True)
    assert calls == {"stack": 6, "alone": 0}
    cache = cache_of(out)
    joint = cache.joints[("tuned", "reference")].cache.layers[0].keys
    assert joint.shape[0] == 6
    for i, name in enumerate(("tuned", "reference")):
        keys = cache.members[name].layers[0].keys
        assert keys.shape[0] == 3
        assert keys.data_ptr() == joint[3 * i :].data_ptr()
    eft.generate(**prompts("left"), max_new_tokens=6, min_new_tokens=6, assistant_model=eft.tuned, num_assistant_tokens=3)
    assert calls["alone"] > 6, "drafting must not run the reference"
