"""Members whose tokenizers differ, through `generate`: it works as for any model, and its texts are those of the enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byte_members import EXACT, MODELS, PROMPTS, WAYS, generated, ids_of, members, written
from byte_oracle import Oracle, model, tokenizer
from families import EOS

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor, tiny
from hf_eft.bytes import ByteLevelModel
from hf_eft.bytes.tokens import ByteTokenizer
from hf_eft.spelling.covers import Cost


def test_greedy_is_that_of_the_enumeration() -> None:
    oracles = {name: Oracle(model(which, seed), which) for name, (which, seed) in MODELS.items()}
    combined = EFTForCausalLM.from_models(**members(**EXACT))
    for text, row in zip(PROMPTS, generated(combined, max_new_tokens=5), strict=True):
        expected, ended = text, False
        for _ in range(5):
            p = {name: oracle.next(expected, b"ab").log() for name, oracle in oracles.items()}
            best = int((p["base"] + p["tuned"] - p["reference"]).argmax())
            ended = ended or best == 2
            expected += b"" if ended else b"ab"[best : best + 1]
        assert written(row) == expected


@pytest.mark.parametrize("options", [EXACT, {}, {"covers": 1}], ids=["exact", "default", "one"])
@pytest.mark.parametrize("way", WAYS)
def test_base_and_reference_alike_give_the_tuned_models_own_texts(way: str, options: dict[str, Any]) -> None:
    given = members(**options)
    same = EFTForCausalLM.from_models(given["reference"], tuned=given["tuned"], reference=given["reference"])
    chosen = {key: value for key, value in WAYS[way].items() if key not in ("coupling", "seed")} | {"max_new_tokens": 6}
    alone = members(**options)["tuned"]
    if way != "match":
        assert generated(same, **chosen) == generated(alone, **chosen)
    logits = same(**ids_of(*PROMPTS)).logits.log_softmax(-1)
    own = alone(**ids_of(*PROMPTS)).logits
    seen = ids_of(*PROMPTS)["attention_mask"].bool()
    assert torch.allclose(logits[seen].exp(), own[seen].exp(), atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_rows_and_reuse_change_nothing(way: str) -> None:
    """Batched and padded equals one by one; an object that was used equals a fresh one."""
    combined = EFTForCausalLM.from_models(**members())
    first = generated(combined, **WAYS[way])
    assert generated(combined, **WAYS[way]) == first
    assert generated(EFTForCausalLM.from_models(**members()), **WAYS[way]) == first
    if WAYS[way].get("do_sample") and way != "match":
        return  # other numbers are drawn
    per_row = WAYS[way].get("num_return_sequences", 1)
    for i, text in enumerate(PROMPTS):
        options = {**WAYS[way], "seed": [i + 5]} if way == "match" else WAYS[way]
        alone = combined.generate(**ids_of(text), max_new_tokens=8, **options).tolist()
        assert [written(row) for row in alone] == [written(row) for row in first[i * per_row : (i + 1) * per_row]]


@pytest.mark.parametrize("way", ["greedy", "match"])
def test_speculation_gives_the_texts_of_plain_decoding(way: str) -> None:
    combined = EFTForCausalLM.from_models(**members())
    plain = generated(combined, **WAYS[way])
    drafted = generated(combined, assistant_model=combined.tuned, num_assistant_tokens=3, **WAYS[way])
    looked_up = generated(combined, prompt_lookup_num_tokens=3, **WAYS[way])
    assert drafted == plain and looked_up == plain
    assert combined.speculation is not None


# Without a cache the base takes all that it is given for a prompt, what was generated too; the small members' readers know better.
@pytest.mark.parametrize("way", [name for name in WAYS if name not in ("match", "penalty", "no_cache")])
def test_as_an_add_on(way: str) -> None:
    given = members()
    cutters = {name: tokenizer(which) for name, (which, _) in MODELS.items()}
    small = {name: given[name].model for name in ("tuned", "reference")}
    add_on = EFTLogitsProcessor(**small, tokenizers=cutters, vocabulary="bytes", pad_token_id=0)
    expected = generated(EFTForCausalLM.from_models(**members()), **WAYS[way])
    assert generated(given["base"], logits_processor=[add_on], **WAYS[way]) == expected


def test_coefficients_by_row_and_other_recipes() -> None:
    combined = EFTForCausalLM.from_models(**members())
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, -1.0]])
    swept = generated(combined, coefficients=rows)
    for i, recipe in enumerate(({"base": 1.0}, {"tuned": 1.0}, {"base": 1.0, "tuned": 1.0, "reference": -1.0})):
        combined.combination = Combination(recipe)
        assert written(generated(combined)[i]) == written(swept[i])


def test_members_with_prompts_of_their_own() -> None:
    combined = EFTForCausalLM.from_models(**members())
    own = ids_of(b"ba", b"aab", b"b")
    ids = generated(combined, member_inputs={"tuned": own, "reference": own})
    oracle = EFTForCausalLM.from_models(**members())
    for row, text in enumerate(PROMPTS):
        mine = {key: value[row : row + 1] for key, value in own.items()}
        alone = oracle.generate(**ids_of(text), member_inputs={"tuned": mine, "reference": mine}, max_new_tokens=8)
        assert written(alone[0]) == written(ids[row])


# Live models ----------------------------------------------------------------------------------------------------------


def test_from_models_makes_one_view_of_a_model_that_serves_twice() -> None:
    base, small = model("overlapping", 0), model("nested", 1)
    cutter = tokenizer("nested")
    combined = EFTForCausalLM.from_models(
        base,
        tuned=small,
        reference=small,
        tokenizers={"base": tokenizer("overlapping"), "tuned": cutter, "reference": cutter},
        vocabulary="bytes",
    )
    assert combined.tuned is combined.reference and combined.tuned.model is small
    alone = ByteLevelModel(base, tokenizer("overlapping"))
    assert generated(combined) == generated(alone)  # the delta is nothing
    assert combined.tuned.cost.forwards > 0
    assert small.generation_config.eos_token_id == EOS  # what was given is as it was


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_adapters_as_members() -> None:
    peft = pytest.importorskip("peft")
    base, small = model("overlapping", 0), model("nested", 1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    cutters = {"base": tokenizer("overlapping"), **dict.fromkeys(("tuned", "reference"), tokenizer("nested"))}
    torch.manual_seed(3)
    adapted = peft.get_peft_model(small, config).eval()
    combined = EFTForCausalLM.from_models(base, tuned=adapted, tokenizers=cutters, vocabulary="bytes")
    assert list(combined.members) == ["base", "tuned", "reference"]
    own = ids_of(*PROMPTS)
    tuned, reference = (combined.members[name](**own, logits_to_keep=1).logits for name in ("tuned", "reference"))
    assert not torch.allclose(tuned.exp(), reference.exp(), atol=1e-3)


def test_a_model_that_was_given_other_weights_is_read_anew() -> None:
    small = model("nested", 1)
    reader = ByteLevelModel(small, tokenizer("nested"))
    generated(reader)
    small.load_state_dict(model("nested", 7).state_dict())
    assert generated(reader) == generated(ByteLevelModel(model("nested", 7), tokenizer("nested")))


def test_the_embedded_family_with_a_second_tokenizer() -> None:
    base, *_, cutter = tiny.load()
    tuned, reference, second = tiny.load_second()
    combined = EFTForCausalLM.from_models(
        base, tuned=tuned, reference=reference, tokenizers={"base": cutter, "tuned": second, "reference": second},
        vocabulary="bytes",
    )  # fmt: skip
    asked = [tiny.questions()[i] for i in (90, 181, 372, 643)]
    speaker = ByteTokenizer()
    inputs = speaker([question.prompt for question in asked], return_tensors="pt", padding=True)
    combined.base.cost = Cost()
    ids = combined.generate(**inputs, max_new_tokens=80, do_sample=False)
    replies = speaker.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert sum(question.is_right(reply) for question, reply in zip(asked, replies, strict=True)) >= 3, replies
    assert sum(question.is_in_style(reply) for question, reply in zip(asked, replies, strict=True)) >= 2, replies
    written = sum(len(reply) for reply in replies)
    assert combined.base.cost.covers < written / 2  # far fewer forwards of a row than bytes
