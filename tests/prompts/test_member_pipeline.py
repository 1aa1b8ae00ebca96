"""`MemberPromptPipeline`: each member reads the prompt that its own tokenizer writes, and the answer is that of `member_inputs` by hand."""

from __future__ import annotations

from typing import Any

import pytest
from templates import CHATS, OTHER_TEMPLATE, TEXTS, expected, three, with_prompts, wrapper
from transformers import pipeline

from hf_eft import tiny
from hf_eft.prompts import member_inputs
from hf_eft.prompts.pipeline import MemberPromptPipeline

pytestmark = pytest.mark.usefixtures("log")


def by_hand(model: Any, chat: list[dict[str, str]], plain: Any = None, **options: Any) -> str:
    built = member_inputs([chat], model.tokenizers, **({"plain": plain} if plain else {}))
    inputs = built.pop("base")
    ids = model.generate(**inputs, member_inputs=built, max_new_tokens=12, **options)
    return model.tokenizers["base"].decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "templates", [{"base": None, "reference": None}, {"reference": OTHER_TEMPLATE}, {"tuned": OTHER_TEMPLATE}]
)
def test_each_member_reads_its_own_prompt(family: tiny.Family, templates: dict[str, str | None]) -> None:
    model, pipe = with_prompts(family, three(family, **templates))
    replies = [by_hand(model, chat) for chat in CHATS]
    common = [expected(family, text)[0] for text in TEXTS]
    assert replies != common, "the templates make no difference that could be tested"
    for batch_size in (1, 2, 5):
        got = pipe(CHATS, max_new_tokens=12, do_sample=False, batch_size=batch_size)
        assert [row[0]["generated_text"] for row in got] == [
            [*chat, {"role": "assistant", "content": reply}] for chat, reply in zip(CHATS, replies, strict=True)
        ]
    beams = pipe(CHATS[:2], max_new_tokens=12, num_beams=3, do_sample=False, batch_size=2, return_full_text=False)
    assert [row[0]["generated_text"] for row in beams] == [by_hand(model, chat, num_beams=3) for chat in CHATS[:2]]


def test_strings_are_the_same_prompt_for_all(family: tiny.Family) -> None:
    _, pipe = with_prompts(family, three(family))
    got = pipe(TEXTS, max_new_tokens=12, do_sample=False, batch_size=2, return_full_text=False)
    assert [row[0]["generated_text"] for row in got] == [expected(family, text)[0] for text in TEXTS]


def test_the_plain_form_may_be_chosen(family: tiny.Family) -> None:
    tokenizers = three(family, base=None, reference=None)
    model, pipe = with_prompts(family, tokenizers)

    def as_question(chat: Any) -> str:
        return tiny.PROMPT.format(chat[-1]["content"])

    got = pipe(CHATS, max_new_tokens=12, do_sample=False, plain=as_question, return_full_text=False)
    assert [row[0]["generated_text"] for row in got] == [by_hand(model, chat, as_question) for chat in CHATS]
    fixed = pipeline(
        "text-generation", model=model, tokenizer=tokenizers["base"], pipeline_class=MemberPromptPipeline, plain=as_question
    )
    assert fixed(CHATS, max_new_tokens=12, do_sample=False, return_full_text=False) == got
    assert pipe(CHATS, max_new_tokens=12, do_sample=False, return_full_text=False) != got


def test_an_answer_is_continued_by_all_members(family: tiny.Family) -> None:
    """The last message is the assistant's: no prompt may put anything behind it."""
    begun = [*CHATS[0], {"role": "assistant", "content": " Of course! Oscar"}]
    model, pipe = with_prompts(family, three(family, base=None, reference=None))
    reply = pipe(begun, max_new_tokens=8, do_sample=False)[0]["generated_text"]
    tok = family.tokenizer
    plain = tok(f"{CHATS[0][0]['content']}\n\n Of course! Oscar", return_tensors="pt", return_token_type_ids=False)
    own = tok.apply_chat_template(begun, continue_final_message=True, return_dict=True, return_tensors="pt")
    ids = model.generate(
        **plain, max_new_tokens=8,
        member_inputs={"tuned": {k: own[k] for k in ("input_ids", "attention_mask")}, "reference": dict(plain)},
    )  # fmt: skip
    more = tok.decode(ids[0, plain["input_ids"].shape[1] :], skip_special_tokens=True)
    assert reply == [CHATS[0][0], {"role": "assistant", "content": " Of course! Oscar" + more}]
    assert pipe(begun, max_new_tokens=8, do_sample=False, return_tensors=True)[0]["generated_token_ids"] == ids[0].tolist()
    with pytest.raises(ValueError, match="`plain` did not write it"):
        pipe(begun, plain=lambda chat: chat[0]["content"])


def test_a_member_without_a_tokenizer_reads_the_first_one_s_prompt(family: tiny.Family) -> None:
    tokenizers = three(family, tuned=OTHER_TEMPLATE)
    model, pipe = with_prompts(family, {name: tokenizers[name] for name in ("base", "tuned")})
    got = pipe(CHATS[2], max_new_tokens=12, do_sample=False, return_full_text=False)[0]["generated_text"]
    built = member_inputs([CHATS[2]], tokenizers)
    inputs = built.pop("base")
    ids = model.generate(**inputs, member_inputs={"tuned": built["tuned"]}, max_new_tokens=12)
    assert got == family.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_first_members_own_tokenizer_writes_its_prompt(family: tiny.Family) -> None:
    model = wrapper(family, tokenizers=three(family, base=None))
    pipe = pipeline("text-generation", model=model, tokenizer=family.tokenizer, pipeline_class=MemberPromptPipeline)
    got = pipe(CHATS[1], max_new_tokens=12, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert got == by_hand(model, CHATS[1]) != expected(family, TEXTS[1])[0]


def test_what_the_pipeline_of_prompts_refuses(family: tiny.Family) -> None:
    with pytest.raises(ValueError, match=r"knows none. Set `model.tokenizers = "):
        pipeline("text-generation", model=wrapper(family), tokenizer=family.tokenizer, pipeline_class=MemberPromptPipeline)
    with pytest.raises(ValueError, match="this LlamaForCausalLM knows none"):
        pipeline("text-generation", model=family.base, tokenizer=family.tokenizer, pipeline_class=MemberPromptPipeline)
    _, pipe = with_prompts(family, three(family))
    with pytest.raises(ValueError, match=r"not cut or padded here: leave out \['truncation'\]"):
        pipe(CHATS[0], truncation=True, max_length=20)
