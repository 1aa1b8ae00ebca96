"""What learns, and what does not."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from adapted import PEFT_SAYS
from families import build, lora
from taught import FULL, LORA, batch_of, check_learns, formula, members, rows

from hf_eft import Combination
from hf_eft.training import EFTForTraining

pytestmark = PEFT_SAYS


@pytest.mark.parametrize("kind", [FULL, LORA])
def test_nothing_but_the_learner_changes(kind: str) -> None:
    given = {**members(kind), "base": lora(build("llama", 0).double())}
    for name in ("base", "reference"):
        given[name].train()
    model = EFTForTraining.from_models(**given, alpha=0.5)
    learns = {id(p) for p in model.learner.parameters() if p.requires_grad}
    for name in ("base", "reference"):
        assert not any(p.requires_grad for p in model.members[name].parameters()), name
    assert learns == {id(p) for p in model.parameters() if p.requires_grad}
    before = {name: copy.deepcopy(model.members[name].state_dict()) for name in model.members}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.train()(**batch_of(rows(), "left")).loss.backward()
    optimizer.step()
    for name in ("base", "reference"):
        torch.testing.assert_close(model.members[name].state_dict(), before[name], atol=0, rtol=0)
    changed = [
        key for key, value in model.members["tuned"].state_dict().items() if not torch.equal(value, before["tuned"][key])
    ]
    assert changed and (kind == FULL or all("lora_" in key for key in changed))


@pytest.mark.parametrize("config", [None, peft.LoraConfig(r=2, target_modules="all-linear")])
def test_a_new_member_begins_as_the_reference(config: peft.LoraConfig | None) -> None:
    base, reference = build("llama", 0), build("qwen3", 2)
    model = EFTForTraining.from_models(base, reference=reference, alpha=0.5, peft_config=config).train()
    batch = batch_of(rows(), "left")
    read = {key: batch[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**read).logits.softmax(-1), base(**read).logits.softmax(-1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    assert not torch.allclose(model(**read).logits.softmax(-1), base(**read).logits.softmax(-1))


def test_models_that_share_dropout_do_not_share_the_mode() -> None:
    """LoRA on a GPT-2, whose dropout is the reference's as well."""
    reference = build("gpt2", 2, resid_pdrop=0.5, embd_pdrop=0.5)
    tuned = lora(reference, target_modules=["c_attn"], fan_in_fan_out=True)
    model = EFTForTraining.from_models(build("llama", 0), tuned=tuned, reference=reference, alpha=0.5)
    ids = rows([8])[0][None]
    expected = model.members["reference"](input_ids=ids).logits
    model.train()
    assert not torch.equal(model.members["tuned"](input_ids=ids).logits, model.members["tuned"](input_ids=ids).logits)
    torch.testing.assert_close(model.members["reference"](input_ids=ids).logits, expected, atol=0, rtol=0)
    assert not torch.equal(model.members["tuned"](input_ids=ids).logits, model.members["tuned"](input_ids=ids).logits)


def test_one_of_several_tuned_members_learns() -> None:
    reference = build("qwen3", 2).double()
    tuned = lora(reference, ("kind", "brief"))
    recipe = Combination.steer({"kind": 0.3, "brief": 0.6})
    model = EFTForTraining.from_models(
        build("llama", 0).double(), tuned=tuned, reference=reference, combination=recipe, learns="brief"
    ).train()
    batch = batch_of(rows(), "right")
    check_learns(model, model(**batch).loss, formula(model, batch))
    assert all(".brief." in name for name, p in model.named_parameters() if p.requires_grad)


def test_several_bases_are_drawn() -> None:
    reference = build("qwen3", 2)
    bases = [build("llama", 0), build("llama", 5), reference]
    model = EFTForTraining.from_models(bases, tuned=build("qwen3", 1), reference=reference, alpha=0.5)
    alone = [EFTForTraining.from_models(base, tuned=model.learner, reference=reference, alpha=0.5) for base in bases]
    batch = batch_of(rows(), "right")
    each = [float(m(**batch).loss.detach()) for m in alone]
    model.train()
    torch.manual_seed(0)
    drawn = [float(model(**batch).loss.detach()) for _ in range(12)]
    assert {min(range(3), key=lambda i: abs(each[i] - loss)) for loss in drawn} == {0, 1, 2}
    torch.manual_seed(0)
    assert drawn == [float(model(**batch).loss.detach()) for _ in range(12)]
    assert {float(model.eval()(**batch).loss.detach()) for _ in range(5)} == {each[0]}


def test_it_generates_as_a_combination() -> None:
    given = members(LORA)
    model = EFTForTraining.from_models(**given, alpha=0.5)
    ids = rows([5])[0][None]
    plain = model.generate(ids, max_new_tokens=6, do_sample=False)
    drafted = model.train().generate(ids, max_new_tokens=6, do_sample=False, assistant_model=model.tuned)
    assert torch.equal(plain, drafted)


def refused() -> dict[str, tuple[dict[str, object], str]]:
    reference = build("qwen3", 2)
    two = {"a": build("qwen3", 1), "b": build("qwen3", 3)}
    steer = Combination.steer({"a": 0.5, "b": 0.5})
    return {
        "no reference": ({}, "Give|give the `reference`"),
        "itself": ({"tuned": reference, "reference": reference}, "is the learner's and that of a member"),
        "two of them": ({"tuned": two, "reference": reference, "combination": steer}, "which one learns"),
        "unknown": ({"tuned": two, "reference": reference, "combination": steer, "learns": "c"}, "must name a tuned member"),
        "without a say": ({"reference": reference, "alpha": 0.0}, "learns nothing"),
        "a schedule": ({"reference": reference, "alpha": [0.0, 1.0]}, "has a schedule"),
        "no probability": ({"reference": reference, "combination": Combination.experts()}, "gives tokens the probability 0"),
        "both": ({"tuned": two["a"], "peft_config": peft.LoraConfig()}, "goes on learning as it is"),
        "an adapter there": ({"reference": lora(build("qwen3", 2)), "peft_config": peft.LoraConfig()}, "model of transformers"),
    }


def test_what_cannot_learn_is_refused() -> None:
    for case, (options, said) in refused().items():
        with pytest.raises(ValueError, match=said):
            EFTForTraining.from_models(build("llama", 0), **options)
            pytest.fail(f"not refused: {case}")
