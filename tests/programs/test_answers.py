"""Answers to the lines of a batch run: those of `generate`, whatever the lines around them, also when the run was killed on the way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import invoke
from families import PAD
from letters import Letters, answers, combination, lines_of

from hf_eft import EFTForCausalLM, tiny
from hf_eft.programs.answer import Answerer
from hf_eft.programs.batch import read_items

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a", "longer", "the longest of all", "of", "these", "few"]


@pytest.mark.parametrize("speculative", [False, True])
@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_line_s_answer_does_not_depend_on_its_batch(options: dict[str, Any], speculative: bool) -> None:
    lines = [{"prompt": prompt, **options} for prompt in PROMPTS]
    together, alone = (answers(lines, size, speculative=speculative) for size in (6, 1))
    assert together == alone
    assert not any("error" in answer for answer in together)
    assert together == answers(lines, 6, speculative=not speculative)
    if options:
        assert together != answers(lines, 6, seed=1)
        same = answers([{"prompt": "same", **options}] * 4, 4)
        assert same[0] != same[1]  # lines have noise of their own
    if "num_return_sequences" in options:
        assert together[0]["replies"][0] != together[0]["replies"][1]


def test_beams_that_sample_depend_on_nothing_before() -> None:
    lines = [{"prompt": prompt, "num_beams": 2, "do_sample": True, "temperature": 9.0} for prompt in PROMPTS]
    assert answers(lines, 3)[3:] == answers([{"prompt": "x"}] * 3 + lines[3:], 3)[3:]


def test_a_line_may_have_its_own_recipe_and_options() -> None:
    lines = [{"prompt": "of", "alpha": alpha} for alpha in (0.0, 0.5, 2.0)]
    lines += [{"prompt": "of", "beta": 1.5}, {"prompt": "of", "weights": {"tuned": 0.5}}, {"prompt": "of", "max_new_tokens": 2}]
    found = answers(lines, 6)
    for line, answer in zip(lines[:3], found[:3], strict=True):
        assert [answer] == answers([{"prompt": "of"}], 1, combination(alpha=line["alpha"]))
    assert [found[3]] == answers([{"prompt": "of"}], 1, combination(beta=1.5))
    assert found[4] == found[1] and found[0] != found[2]
    assert found[5]["tokens"] == 2 and found[5]["finish"] == "length"


class Chatting(Letters):
    """Letters whose chat template is a letter before the last message."""

    def __init__(self, letter: str) -> None:
        self.chat_template = letter

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **options: Any) -> list[int]:
        return self(self.chat_template + messages[-1]["content"])["input_ids"]


def test_members_may_read_a_conversation_in_their_own_templates() -> None:
    """A plain text for the base, templates of two kinds for the others: what `generate` makes of the same ids."""
    model = combination()
    tokenizers = {"base": Letters(), "tuned": Chatting("T"), "reference": Chatting("R")}
    lines = [{"messages": [{"role": "user", "content": prompt}]} for prompt in PROMPTS[:3]]
    lines.append({"prompt": "plain"})
    options: dict[str, Any] = {"chat": False, "tokenizers": tokenizers}

    def found(size: int, **more: Any) -> list[dict[str, Any]]:
        items = read_items(b"\n".join(json.dumps(line).encode() for line in lines))
        answerer = Answerer(model, tokenizers["tuned"], {"max_new_tokens": 6}, **more)
        return [a for start in range(0, len(items), size) for a in answerer(items[start : start + size])]

    together = found(4, **options)
    assert together == found(1, **options) != found(4)
    for line, answer in zip(lines[:3], together, strict=False):
        text = line["messages"][0]["content"]
        ids = {
            name: torch.tensor([Letters()(written)["input_ids"]])
            for name, written in (("base", text + "\n\n"), ("tuned", "T" + text), ("reference", "R" + text))
        }
        own = {name: {"input_ids": ids[name]} for name in ("tuned", "reference")}
        expected = model.generate(ids["base"], member_inputs=own, max_new_tokens=6, do_sample=False, pad_token_id=PAD)
        new = expected[0, ids["base"].shape[1] :].tolist()
        assert answer["text"] == " ".join(map(str, new))
    assert together[3] == found(4)[3]


@pytest.mark.parametrize(
    "wrong, error",
    [
        ({"temprature": 1.0}, "'temprature' is no option of `generate`; did you mean 'temperature'?"),
        ({"temperature": -1.0, "do_sample": True}, "`temperature` must be from 0.0001 to 10000, got -1.0"),
        ({"max_new_tokens": "many"}, '`max_new_tokens` must be a number, got "many"'),
        ({"alpha": "strong"}, "'alpha' must be a number, or one for each phase, got 'strong'"),
        ({"weights": {"tuned": [1.0]}}, "'tuned' must be a number, or one for each phase, got [1.0]"),
        ({"alpha": 1, "beta": 1}, "not both alpha and beta"),
        ({"weights": {"kind": 1.0}}, "no tuned members 'kind'"),
        ({"weights": 1.0}, "`weights` must be numbers by member"),
        ({"seed": "x"}, "`seed` must be a whole number"),
        ({"prompt": "a" * 125}, "the prompt is too long: its 125 tokens and 6 more are over the 128 that the member 'base' reads"),
        ({"output_scores": True}, "is no option"),
        ({"prompt": None, "messages": [{"role": "user", "content": "a"}]}, "no chat template"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_answered_leaves_the_others_alone(wrong: dict[str, Any], error: str) -> None:
    bad = {name: value for name, value in {"prompt": "bad", **wrong}.items() if value is not None}
    good = [{"prompt": prompt} for prompt in PROMPTS[:2]]
    first, middle, last = answers([good[0], bad, good[1]], 3)
    assert error in middle["error"]
    assert [first, last] == answers(good, 2)


def test_a_row_that_breaks_the_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, generate = combination(), EFTForCausalLM.generate

    def failing(self: Any, **options: Any) -> Any:
        if (options["input_ids"][:, -1] == ord("!") % 60 + 4).any():
            raise RuntimeError("out of  memory")
        return generate(self, **options)

    expected = answers([{"prompt": "a"}, {"prompt": "of"}], 1)
    monkeypatch.setattr(EFTForCausalLM, "generate", failing)
    found = answers([{"prompt": "a"}, {"prompt": "no!"}, {"prompt": "of"}], 3, model)
    assert found == [expected[0], {"error": "RuntimeError: out of memory"}, expected[1]]


# The command ------------------------------------------------------------------------------------------------------------


LINES = 500


def many(path: Path) -> None:
    """Lines of every kind: greedy, sampled, of another strength, shorter, and some that cannot be answered."""
    texts = [question.text for question in tiny.questions()[:LINES]]
    kinds: list[dict[str, Any]] = [
        {},
        {"do_sample": True},
        {"alpha": 0.5},
        {"max_new_tokens": 2},
        {"do_sample": True, "top_k": 3},
    ]
    lines = [json.dumps({"id": f"q{i}", "prompt": text, **kinds[i % 5]}) for i, text in enumerate(texts)]
    for i in range(37, LINES, 97):
        lines[i] = lines[i][:-1]  # no JSON any more
    path.write_text("\n".join(lines) + "\n")


# Says when a batch is on the disk, so that the one who kills knows that there is something to lose.
CHILD = """
import os
from hf_eft.cli import main
to_disk = os.fsync
def fsync(file):
    to_disk(file)
    os.write(1, b".")
os.fsync = fsync
main()
"""


def test_many_lines_killed_and_started_again(tmp_path: Path) -> None:
    source, whole, killed = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    many(source)

    def command(output: Path) -> list[str]:
        options = ["--chat", "--max-new-tokens", "3", "--batch-size", "40", "--seed", "5"]
        return ["generate", *options, "--input", str(source), "--output", str(output)]

    done = invoke(*command(whole))
    assert done.exit_code == 3 and f"5 of {LINES} lines could not be answered" in " ".join(done.output.split()), done.output
    results = lines_of(whole)
    assert [result["line"] for result in results] == list(range(1, LINES + 1))
    assert [result.get("id") for result in results if "error" not in result] == [f"q{i}" for i in range(LINES) if i % 97 != 37]

    for batches in (2, 3):  # after which the kill comes at some moment of the next one
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *command(killed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment
        )  # fmt: skip
        assert child.stdout is not None and child.stderr is not None
        assert len(child.stdout.read(batches)) == batches, child.stderr.read().decode()
        child.kill()
        child.communicate()
        assert child.returncode == -9
        part = killed.read_bytes()
        assert part.count(b"\n") >= 40 and whole.read_bytes().startswith(part) and part != whole.read_bytes()
        killed.write_bytes(part[: -random.Random(batches).randrange(1, 300)])  # what a write that was cut leaves
    done = invoke(*command(killed))
    assert done.exit_code == 3 and "carrying on" in done.output, done.output
    assert killed.read_bytes() == whole.read_bytes()


def test_standard_input_to_standard_output() -> None:
    question = tiny.questions()[1]
    done = invoke("generate", "--chat", "--input", "-", input=f"{question.text}\n\n")
    first, second = map(json.loads, done.stdout.splitlines())
    assert question.answer in first["text"] and first["finish"] == "stop"
    assert second == {"line": 2, "error": "the prompt is empty"}
    assert done.exit_code == 3


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--input", "{folder}/nowhere"], 1, "No such file"),
        (["--input", "{folder}/empty"], 2, "there are no lines in"),
        (["--input", "-", "hello"], 2, "not both"),
        (["--output", "x.jsonl", "hello"], 2, "needs an --input"),
        (["--batch-size", "2", "hello"], 2, "needs an --input"),
        (["--system", "Be kind.", "hello"], 2, "add --chat"),
        (["--input", "{folder}/one", "--output", "{folder}/one"], 2, "the results would be written over the input"),
    ],
)
def test_what_is_wrong_with_a_run_is_said(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "one").write_text("one")
    done = invoke("generate", *(each.format(folder=tmp_path) for each in arguments))
    assert done.exit_code == code
    assert message in done.stderr and "Traceback" not in done.output
    assert (tmp_path / "one").read_text() == "one"
