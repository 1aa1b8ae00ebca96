"""The texts of an analysis: what is read, what `generate` says to it, how tokens are shown, and the table."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from analysed import PROMPT, SAID, model_of
from families import EOS
from rich.console import Console

from hf_eft import EFTForCausalLM, tiny
from hf_eft.analysis import analyse, rewards
from hf_eft.analysis.token_text import TokenTexts
from hf_eft.programs.report import analysis_table

# Texts in -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.8}, {"return_dict_in_generate": True}]
)
def test_a_generated_continuation(options: dict[str, Any], trained: EFTForCausalLM, tokenizer: Any) -> None:
    prompt = tiny.questions()[3].prompt
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    torch.manual_seed(1)
    out = trained.generate(**inputs, max_new_tokens=30, **options)
    ids = (out if isinstance(out, torch.Tensor) else out.sequences)[0, inputs["input_ids"].shape[1] :]
    torch.manual_seed(1)
    analysis = analyse(trained, tokenizer, prompt, max_new_tokens=30, **options)
    assert [record.token.id for record in analysis.records] == ids.tolist()
    assert analysis.records[-1].token.text == "<eos>" and analysis.prompt == prompt
    assert analysis.continuation == tokenizer.decode(ids)


def test_what_follows_the_end_is_left_out(tokenizer: Any) -> None:
    model = model_of("emulate")
    analysis = analyse(model, tokenizer, PROMPT, max_new_tokens=12, forced_eos_token_id=EOS, eos_token_id=[EOS, 63])
    ids = [record.token.id for record in analysis.records]
    assert ids[-1] in (EOS, 63) and not set(ids[:-1]) & {EOS, 63}


def test_two_texts_are_written_as_one(trained: EFTForCausalLM, tokenizer: Any) -> None:
    prompt, said = tiny.questions()[0].prompt, " Of course! Happy to help!"
    analysis = analyse(trained, tokenizer, prompt, said)
    whole = tokenizer(prompt + said)["input_ids"]
    assert [r.token.id for r in analysis.records] == whole[len(tokenizer(prompt)["input_ids"]) :]
    assert analysis.continuation == said


@pytest.mark.parametrize(
    "prompt, said, message",
    [
        (torch.tensor([], dtype=torch.long), SAID, "The prompt has no token"),
        (PROMPT, torch.tensor([], dtype=torch.long), "The continuation has no token"),
        (PROMPT, "", "The continuation has no token"),
        ("", None, "The prompt has no token"),
        (PROMPT, torch.tensor([3, 900]), "the members have 0 to 63 in common"),
        (PROMPT.expand(2, -1), SAID, "one row of tokens, got the shape \\(2, 4\\)"),
    ],
)
def test_what_cannot_be_analysed(prompt: Any, said: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=message):
        analyse(model_of("emulate"), tokenizer, prompt, said)


def test_several_sequences_and_rewards_of_nobody_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="returned 2"):
        analyse(model_of("emulate"), tokenizer, PROMPT, max_new_tokens=2, do_sample=True, num_return_sequences=2)
    with pytest.raises(ValueError, match="No tuned member has a reference"):
        rewards(model_of("mix"), tokenizer, PROMPT, [SAID])
    with pytest.raises(ValueError, match="shape \\(1, 3\\)"):
        analyse(model_of("emulate"), tokenizer, PROMPT, SAID, coefficients=torch.ones(2, 3))


# Texts out ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["plain words", " 日本語 and é", "\u202eright to left\u202c", "👩‍👩‍👧 family", "a\n\tb  c", "\ufffd\ufffd x", "</script>"],
)
def test_texts_of_tokens_are_the_text(text: str, tokenizer: Any) -> None:
    ids, texts = tokenizer(text, add_special_tokens=False)["input_ids"], TokenTexts(tokenizer)
    before = tokenizer("Answer:", add_special_tokens=False)["input_ids"]
    said = texts.sequence(before, ids)
    assert len(said) == len(ids)
    assert "".join(said) == texts.decode([*before, *ids])[len(texts.decode(before)) :]
    assert all("\ufffd" not in part for part in said) or "\ufffd" in text


def shown(table: Any, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_the_table(width: int, trained: EFTForCausalLM, tokenizer: Any) -> None:
    analysis = analyse(trained, tokenizer, tiny.questions()[3].prompt, max_new_tokens=30)
    text = shown(analysis_table(analysis, width), width)
    assert max(map(len, text.splitlines())) <= width
    for record in analysis.records:
        assert f"{math.exp(record.log_prob):.4f}" in text
    assert f"implicit reward {analysis.summary()['reward']:+.2f}" in " ".join(text.split())
    assert ("changed by" in text) == (width > 100)


def test_the_table_lets_no_text_at_the_terminal(trained: EFTForCausalLM, tokenizer: Any) -> None:
    text = shown(analysis_table(analyse(trained, tokenizer, "Hi", " \x1b[31m[bold]x\u202e\r\n")), 120)
    assert "\x1b" not in text and "\u202e" not in text and "\r" not in text and "\\x1b" in text
