"""`model.tuned = other`, `model.members["tuned"] = other`: from then on that is the member, in everything, or it is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB, build, prompts, shared

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor

WAYS = {
    "attribute": lambda model, name, other: setattr(model, name, other),
    "mapping": lambda model, name, other: model.members.__setitem__(name, other),
    "module": lambda model, name, other: model.set_submodule(name, other),
}


def combined(**members: Any) -> EFTForCausalLM:
    given = {"base": shared("llama", 0), "tuned": shared("gpt2", 1), "reference": shared("qwen3", 2), **members}
    return EFTForCausalLM.from_models(given.pop("base"), **given)


def tokens(model: EFTForCausalLM, **options: Any) -> list[list[int]]:
    return model.generate(**prompts("left"), max_new_tokens=6, **options).tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["base", "tuned", "reference"])
def test_a_member_that_is_replaced_is_the_member_from_then_on(name: str, way: str, tmp_path: Path) -> None:
    other = shared("mistral", 9)
    model, expected = combined(), combined(**{name: other})
    assert tokens(model) != tokens(expected)
    WAYS[way](model, name, other)
    assert getattr(model, name) is other and model.members[name] is other
    assert list(model.members) == ["base", "tuned", "reference"]
    assert tokens(model) == tokens(expected)
    assert tokens(model, assistant_model=model.tuned) == tokens(expected)
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert {n: c.model_type for n, c in model.config.member_configs.items()} == {
        n: c.model_type for n, c in expected.config.member_configs.items()
    }
    model.save_pretrained(tmp_path / "saved")
    assert tokens(EFTForCausalLM.from_pretrained(tmp_path / "saved")) == tokens(expected)


def test_a_member_leaves_a_model_that_it_shared() -> None:
    base, other = shared("llama", 0), shared("mistral", 9)
    model = combined(base=base, reference=base)
    assert "reference" not in dict(model.named_children())
    model.base = other
    assert model.reference is base and dict(model.named_children())["reference"] is base
    assert tokens(model) == tokens(combined(base=other, reference=base))
    model.reference = other  # and shares one again
    assert "reference" not in dict(model.named_children()) and model.config.shared_members == {"reference": "base"}
    assert tokens(model) == tokens(combined(base=other, reference=other))


def test_what_cannot_be_a_member_is_refused_and_nothing_changes() -> None:
    model = combined()
    expected = tokens(model)
    for other, error, match in (
        (None, ValueError, "'tuned' is missing"),
        (torch.nn.Linear(2, 2), TypeError, "'tuned' must be a model of transformers"),
        (build("gpt2", 1, vocab_size=VOCAB + 200), ValueError, "differ by more than padding"),
    ):
        with pytest.raises(error, match=match):
            model.tuned = other
    with pytest.raises(ValueError, match=r"no member 'helpful' to replace, the members are \['base', 'tuned', 'reference'\]"):
        model.members["helpful"] = model.tuned
    for remove in (lambda: delattr(model, "tuned"), lambda: model.members.__delitem__("tuned")):
        with pytest.raises(AttributeError, match="'tuned' cannot be left out"):
            remove()
    assert tokens(model) == expected and list(model.state_dict()) == list(combined().state_dict())


def test_what_is_no_member_is_set_as_ever() -> None:
    model = combined()
    model.note, model.head = "text", torch.nn.Linear(2, 2)
    assert model.note == "text" and "head" in dict(model.named_children())
    del model.head
    assert "head" not in dict(model.named_children())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
def test_an_adapter_gives_way_to_the_model_it_was_merged_into() -> None:
    peft = pytest.importorskip("peft")
    trunk = build("llama", 1)
    adapted = peft.get_peft_model(trunk, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    merged = copy.deepcopy(adapted).merge_and_unload()
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=adapted)
    before = tokens(model)
    assert model._members.stacks and model.config.adapters
    model.tuned = merged
    assert not model.config.adapters and model.tuned is merged
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.mul_(1.5)  # only of the merged one: the reference stays as it was
    assert tokens(model) != before
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.div_(1.5)
    torch.testing.assert_close(tokens(model), before)


@pytest.mark.parametrize("kind", ["wrapper", "add-on"])
def test_a_recipe_of_members_that_are_not_there_is_refused(kind: str) -> None:
    model = combined() if kind == "wrapper" else EFTLogitsProcessor(shared("gpt2", 1), shared("qwen3", 2))
    before = model.combination
    with pytest.raises(ValueError, match="helpful"):
        model.combination = Combination.steer({"helpful": 1.0})
    assert model.combination is before
    model.combination = Combination.emulate(alpha=0.5)
    assert model.combination == Combination.emulate(alpha=0.5)
