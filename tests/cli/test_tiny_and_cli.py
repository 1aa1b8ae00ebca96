"""The embedded family as it was promised, and the command line."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from commands import invoke
from families import shared
from rich.console import Console

from hf_eft import EFTForCausalLM, tiny
from hf_eft.cli import generation_options
from hf_eft.programs.demo import ask
from hf_eft.programs.report import score_table

SAMPLE = slice(0, 1200, 7)


def test_facts_come_from_the_base_and_the_style_from_the_tuned_member(family: Any, model: EFTForCausalLM) -> None:
    questions = tiny.questions()[SAMPLE]

    def scores(system: Any) -> tuple[float, float]:
        replies = ask(system, family.tokenizer, questions)
        pairs = list(zip(questions, replies, strict=True))
        return sum(q.is_right(r) for q, r in pairs) / len(pairs), sum(q.is_in_style(r) for q, r in pairs) / len(pairs)

    (tuned_right, tuned_style), (base_right, base_style), (right, style) = map(scores, (family.tuned, family.base, model))
    assert tuned_right < 0.3 and tuned_style > 0.85
    assert base_right > 0.95 and base_style < 0.05
    assert right > 0.95 and style > 0.7


def test_the_large_model_is_deep_and_the_weights_are_small(family: Any) -> None:
    assert family.base.config.num_hidden_layers >= 8
    assert sum(path.stat().st_size for path in tiny.FOLDER.rglob("*") if path.is_file()) <= 8 * 2**20
    assert not [path for path in tiny.FOLDER.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]
    with pytest.raises(ValueError, match="not 'huge'"):
        tiny.path("huge")


def test_the_prompt_is_the_chat_template_s(family: Any) -> None:
    question = tiny.questions()[0]
    messages = [{"role": "user", "content": question.text}]
    assert family.tokenizer.apply_chat_template(messages, tokenize=False) == "<bos>" + question.prompt


def test_generation_options() -> None:
    options, rest = generation_options(
        ["--num-beams", "4", "say", "--do-sample=true", "--stop-strings", "a b", "--length-penalty", "-1.5"]
    )
    assert options == {"num_beams": 4, "do_sample": True, "stop_strings": "a b", "length_penalty": -1.5}
    assert rest == ["say"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "{text}", "--chat"],
        ["generate", "--num-beams", "2", "{text}", "--chat"],
        ["generate", "--chat", "--no-stream", "--base", "{base}", "--tuned", "{tuned}", "--reference", "{reference}", "{text}"],
        ["generate", "--chat"],  # from the standard input
    ],
)
def test_generate(arguments: list[str]) -> None:
    question = tiny.questions()[1]
    names = {"text": question.text, **{name: str(tiny.path(name)) for name in ("base", "tuned", "reference")}}
    done = invoke(*(argument.format(**names) for argument in arguments), input=question.text)
    assert done.exit_code == 0, done.output
    assert question.answer in done.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num-beans", "4", "hello"], "did you mean --num-beams"),
        (["--num-beams"], "needs a value"),
        (["one", "two"], "expected one prompt"),
        (["--base", "somewhere", "hello"], "missing: --tuned, --reference"),
        (
            ["--base", "/nowhere", "--tuned", "/nowhere", "--reference", "/nowhere", "hello"],
            "/nowhere",
        ),
        (["--alpha", "1", "--beta", "1", "hello"], "not both"),
        ([" "], "the prompt is empty"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], message: str) -> None:
    done = invoke("generate", *arguments, env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")


def test_demo() -> None:
    done = invoke("demo", "--questions", "2", "--asked", "12", env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "All 12 questions asked" in done.output and "What the delta changed" in done.output


def test_the_scores_of_the_demo_are_whole_in_a_terminal_of_80_columns() -> None:
    """They were cut off behind the bars, with the table's edge."""
    questions = tiny.questions()[:3]
    said = [f" Of course! {q.answer}. Happy to help!" for q in questions]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(score_table(questions, {"learnt through the large": said, "large base": ["" for _ in said]}))
    rows = [line for line in console.export_text().splitlines() if "█" in line or "░" in line]
    assert [line.count("%") for line in rows] == [2, 2] and all(line.rstrip().endswith("│") for line in rows)


def test_importing_hf_eft_imports_no_modeling_code() -> None:
    code = "import sys, hf_eft; print('transformers.modeling_utils' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]


def test_auto_classes_find_the_model_without_its_module(tmp_path: Any) -> None:
    EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gpt2", 1), reference=shared("gpt2", 2)).save_pretrained(
        tmp_path
    )
    load = f"print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})))"
    code = f"from transformers import AutoModelForCausalLM; import hf_eft; {load}"
    assert "EFTForCausalLM" in subprocess.check_output([sys.executable, "-c", code], text=True)
