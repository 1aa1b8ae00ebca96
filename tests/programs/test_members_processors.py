"""Each member's processor makes its own of a chat, for the programs that ask it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookers import combination, own_inputs, picture, processor
from tokenizers.processors import TemplateProcessing

from hf_eft.programs.pictures import Processors
from hf_eft.prompts import member_inputs
from hf_eft.prompts.pictures import is_processor, tokenizer_of

FAMILIES = ("qwen2_vl", "llava", "llava")
CHAT = [{"role": "user", "content": [{"type": "text", "text": "w20"}, {"type": "image", "image": picture(1)}]}]


def test_members_alone_and_together_see_what_their_processors_make() -> None:
    first, others = processor("qwen2_vl"), processor("llava")
    prompt, seen = Processors(combination(*FAMILIES), first, {"tuned": others, "reference": others}).read(CHAT)
    expected = own_inputs({"base": first, "tuned": others, "reference": others}, "w20", picture(1))
    assert seen is not None and prompt == seen.prompt == expected["input_ids"][0].tolist()
    assert seen.lengths == {name: expected["member_inputs"][name]["input_ids"].shape[1] for name in ("tuned", "reference")}
    assert seen.own["tuned"] is seen.own["reference"]  # made once
    torch.testing.assert_close(seen.pictures["pixel_values"], expected["pixel_values"])
    for name, inputs in expected["member_inputs"].items():
        alone = seen.alone(name)
        assert alone.keys() == inputs.keys() - {"attention_mask"}
        torch.testing.assert_close(alone["pixel_values"], inputs["pixel_values"])
    assert seen.alone("base")["input_ids"].tolist() == [prompt] and "member_inputs" not in seen.alone("base")


def test_one_processor_of_all_makes_one_prompt() -> None:
    first = processor("qwen2_vl")
    viewers = Processors(combination(*["qwen2_vl"] * 3), first)
    _, seen = viewers.read(CHAT)
    assert seen is not None and not seen.own and "member_inputs" not in seen.pictures
    assert viewers.read([{"role": "user", "content": "w20 w21"}])[1] is None
    assert is_processor(first) and not is_processor(first.tokenizer) and tokenizer_of(first) is first.tokenizer


def test_processors_are_of_members_and_see() -> None:
    model, first = combination(*FAMILIES), processor("qwen2_vl")
    assert not Processors(model, first.tokenizer).any
    for own, expected in (({"draft": first}, "has one of 'draft'"), ({"tuned": first.tokenizer}, "makes nothing of pictures")):
        with pytest.raises(ValueError, match=expected):
            Processors(model, first, own)
    with pytest.raises(ValueError, match="'tuned', the member 'reference', which has no processor"):
        Processors(model, first.tokenizer, {"base": first}).read(CHAT)


def beginning(family: str) -> Any:
    """A processor whose tokenizer begins texts with a token, and whose template writes it too, as most do."""
    made = processor(family)
    made.chat_template = "<bos> " + made.chat_template
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return made


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_the_token_that_begins_a_text_stands_once(family: str) -> None:
    made = beginning(family)
    assert made.tokenizer("w20")["input_ids"][0] == 1
    [ids] = member_inputs([CHAT], {"base": made})["base"]["input_ids"].tolist()
    assert ids[0] == 1 and ids.count(1) == 1
    assert ids == own_inputs({"base": made}, "w20", picture(1))["input_ids"][0].tolist()


@pytest.mark.parametrize("alone", [True, False])
def test_processors_apart_are_copies_that_make_the_same(alone: bool) -> None:
    """Reading pads, and how is kept by the tokenizer: another thread has its own."""
    first, others = processor("qwen2_vl"), processor("llava")
    own = {"base": first, "tuned": others, "reference": others}
    viewers = Processors(combination(*FAMILIES), first if alone else first.tokenizer, own)
    before = first.tokenizer.backend_tokenizer.padding
    prompt, seen = viewers.apart().read(CHAT)
    assert first.tokenizer.backend_tokenizer.padding == before is None
    expected = viewers.read(CHAT)
    assert seen is not None and expected[1] is not None and prompt == expected[0]
    assert first.tokenizer.backend_tokenizer.padding is not None  # what `apart` is for
    assert seen.own["tuned"] is seen.own["reference"]
    torch.testing.assert_close(seen.pictures["pixel_values"], expected[1].pictures["pixel_values"])
