"""Members whose chat templates differ: a prompt in the template of one is told of once, and not to those who said what they want."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
from templates import CHATS, NAMES, OTHER_TEMPLATE, TEXTS, expected, three, with_prompts, wrapper
from transformers import pipeline

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor, tiny

pytestmark = pytest.mark.usefixtures("log")


def test_templates_that_differ_are_told_of_once(family: tiny.Family) -> None:
    model = wrapper(family, tokenizers=three(family, base=None, reference=None))
    pipe = pipeline("text-generation", model=model, tokenizer=model.tokenizers["tuned"])
    with pytest.warns(UserWarning) as warned:
        got = pipe(CHATS[0], max_new_tokens=12, do_sample=False, return_full_text=False)
    assert len(warned) == 1
    message = str(warned[0].message)
    assert "in that of 'tuned', and ['base', 'reference'] were trained on another or none" in message
    assert "member_inputs={}" in message and "MemberPromptPipeline" in message and "hf_eft.prompts.member_inputs" in message
    assert Path(warned[0].filename).name == "text_generation.py", "the line that called `generate`"
    assert got[0]["generated_text"] == expected(family, TEXTS[0])[0]
    assert (
        pipe(CHATS[0], max_new_tokens=12, do_sample=False, return_full_text=False) == got
    )  # warnings are errors here: not again
    inputs = family.tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    other = wrapper(family, tokenizers=three(family, tuned=OTHER_TEMPLATE))
    with pytest.warns(UserWarning, match=r"in that of 'base', and \['tuned'\]"):
        other.generate(**inputs, max_new_tokens=1)


def test_the_add_on_tells_of_templates_too(family: tiny.Family) -> None:
    inputs = family.tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    tokenizers = three(family, base=None, reference=None)

    def run(prompt: Any, **options: Any) -> EFTLogitsProcessor:
        add_on = EFTLogitsProcessor(family.tuned, family.reference, **options)
        family.base.generate(**prompt, max_new_tokens=2, logits_processor=[add_on])
        return add_on

    with pytest.warns(UserWarning, match="in that of 'tuned'") as warned:
        add_on = run(inputs, tokenizers=tokenizers)
    assert len(warned) == 1
    family.base.generate(**inputs, max_new_tokens=2, logits_processor=[add_on])  # warnings are errors here: not again
    run(inputs, tokenizers=tokenizers, member_inputs={})
    run(inputs, tokenizers=tokenizers, member_inputs={"tuned": inputs}, attention_mask=inputs["attention_mask"])
    run(inputs, tokenizers=three(family))
    run(inputs)
    run(family.tokenizer("Oscar Palmer", return_tensors="pt", return_token_type_ids=False), tokenizers=tokenizers)


def test_nobody_who_said_what_they_want_is_warned(family: tiny.Family) -> None:
    """Warnings are errors in these tests."""
    inputs = family.tokenizer(TEXTS[:2], return_tensors="pt", padding=True, return_token_type_ids=False)
    one = {"max_new_tokens": 1}
    tokenizers = three(family, base=None, reference=None)
    wrapper(family, tokenizers=tokenizers).generate(**inputs, **one, member_inputs={})
    model, pipe = with_prompts(family, tokenizers)
    pipe(CHATS, **one)
    model.generate(**inputs, **one, member_inputs={"tuned": inputs})
    text = family.tokenizer(["Oscar Palmer was born"], return_tensors="pt", return_token_type_ids=False)
    model.generate(**text, **one)  # no chat
    model.generate(max_new_tokens=1, do_sample=False)  # nothing was read
    wrapper(family, tokenizers=three(family)).generate(**inputs, **one)  # one template
    wrapper(family).generate(**inputs, **one)  # no tokenizers
    broken = three(family, base=None, tuned="{{ raise_exception('never') }}")
    broken["reference"].chat_template = None
    wrapper(family, tokenizers=broken).generate(**inputs, **one)  # a template that refuses is no reason to fail


def test_tokenizers_may_be_given_later(family: tiny.Family) -> None:
    model = wrapper(family)
    assert model.tokenizers == {}
    model.tokenizers = three(family, base=None)
    assert list(model.tokenizers) == list(NAMES)
    more, words = copy.deepcopy(family.tokenizer), copy.deepcopy(family.tokenizer)
    more.add_tokens(["<new>"])
    words.add_tokens(["<newer>"])
    with pytest.raises(ValueError, match="differ in content"):
        model.tokenizers = {"base": more, "tuned": words}
    assert model.tokenizers["base"].chat_template is None, "what was refused is not kept"
    guided = EFTForCausalLM.from_models(family.base, reference=family.base, combination=Combination.guide(1.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert guided.tokenizers == {}
