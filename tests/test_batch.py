"""Batch runs: whatever a line says and wherever a run is cut, every line has its one result, and the same one."""

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
from families import PAD, shared
from typer.testing import CliRunner

from hf_eft import EFTForCausalLM, tiny
from hf_eft.cli import app
from hf_eft.programs.answer import Answerer
from hf_eft.programs.batch import Item, Results, encoded, read_items, run_batches

ROOT = Path(__file__).resolve().parents[1]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Lines in --------------------------------------------------------------------------------------------------------------


def test_lines_of_text() -> None:
    items = read_items("\ufeffone\r\n\n  two\u2028three \nlast".encode())
    assert [item.prompt for item in items] == ["one", None, "  two\u2028three ", "last"]
    assert [item.line for item in items] == [1, 2, 3, 4]
    assert items[1].error == "the prompt is empty"
    assert read_items(b"") == []
    assert "not UTF-8" in str(read_items(b"good\nb\xffad")[1].error)


def test_lines_of_json() -> None:
    lines = [
        {"id": "a", "prompt": "one", "alpha": 0.5, "temperature": 0.7, "do_sample": True, "seed": 3},
        {"id": 7, "messages": [{"role": "user", "content": "two"}], "weights": {"helpful": 1.0}, "beta": None},
    ]
    one, two = read_items("\n".join(map(json.dumps, lines)).encode())
    assert (one.id, one.prompt, one.recipe) == ("a", "one", {"alpha": 0.5})
    assert one.options == {"temperature": 0.7, "do_sample": True, "seed": 3}
    assert two.messages == ({"role": "user", "content": "two"},) and two.recipe == {"weights": {"helpful": 1.0}}
    # A prompt may look like JSON: what the lines are can be said.
    assert read_items(b'{"prompt": 1}', as_json=False)[0].prompt == '{"prompt": 1}'


@pytest.mark.parametrize(
    "line, error",
    [
        ("{", "the line is no JSON: Expecting property name"),
        ("[1]", "the line is no JSON object but [1]"),
        ("", "the line is no JSON: it is blank"),
        ('{"prompt": NaN}', "NaN is no JSON"),
        ("[" * 100_000, "the line is no JSON: it is nested too deeply"),
        ('{"id": 1}', "expected either `prompt` or `messages`, got neither"),
        ('{"prompt": "a", "messages": []}', "got `prompt` and `messages`"),
        ('{"prompt": 3}', "`prompt` must be a text, got 3"),
        ('{"prompt": " "}', "the prompt is empty"),
        ('{"prompt": "a\\ud800"}', "`prompt` is no text"),
        ('{"prompt": "a", "prompt": "b"}', 'the name "prompt" is there twice'),
        ('{"prompt": null, "messages": null}', "expected either `prompt` or `messages`, got neither"),
        ('{"messages": [{"role": "user", "content": null}]}', "messages[0]: `content` must be a text"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', '`content[0].type` must be "text", got "image_url"'),
        ('{"messages": "hello"}', '`messages` must be a list of {"role": ..., "content": ...}, got "hello"'),
        ('{"messages": []}', "`messages` must be a list"),
    ],
)  # fmt: skip
def test_a_bad_line_says_what_is_wrong(line: str, error: str) -> None:
    items = read_items(f'{{"prompt": "before"}}\n{line}\n{{"prompt": "after"}}'.encode())
    assert [item.prompt for item in items] == ["before", None, "after"]
    assert error in str(items[1].error)


def test_lines_in_other_encodings_and_arrays() -> None:
    """What editors, tables and shells write: one reader takes it, whatever is asked in it."""
    lines = [{"prompt": "é\u2028\u0085"}, {"id": {"a": None}, "prompt": "b", "alpha": 0.5}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    array = json.dumps(lines, indent=1)
    for data in (text.encode("utf-16"), text.replace("\n", "\r").encode("utf-8-sig"), array.encode(), array.encode("utf-16")):
        one, two = read_items(data)
        assert (one.line, one.prompt, two.line, two.prompt, two.id) == (1, lines[0]["prompt"], 2, "b", {"a": None})
        assert two.recipe == {"alpha": 0.5} and not (one.error or two.error)
    assert [item.prompt for item in read_items("é\r\nb".encode("utf-16"))] == ["é", "b"]
    assert [item.prompt for item in read_items(b"[1] one\n[2] two")] == ["[1] one", "[2] two"]
    assert [item.error for item in read_items(b'["one", 2]')] == [
        'the line is no JSON object but "one"',
        "the line is no JSON object but 2",
    ]
    assert [item.prompt for item in read_items(array.encode(), as_json=False)] == array.splitlines()
    for broken in (b'[{"prompt": "a"},\n', b'[\n{"prompt": "a"}\n{"prompt": "b"}\n]'):
        with pytest.raises(ValueError, match="begins as a JSON array"):
            read_items(broken)


@pytest.mark.parametrize(
    "name", ["alpha", "beta", "weights", "temperature", "stop_strings", "max_new_tokens", "seed", "messages", "x"]
)
def test_null_is_absent(name: str) -> None:
    assert read_items(json.dumps({"prompt": "a", name: None}).encode()) == read_items(b'{"prompt": "a"}')


def test_no_weights_are_none() -> None:
    for given in ({}, {"tuned": None}):
        assert read_items(json.dumps({"prompt": "a", "weights": given}).encode()) == read_items(b'{"prompt": "a"}')
    assert answers([{"prompt": "of", "weights": {"tuned": 0.5, "x": None}}], 1) == answers([{"prompt": "of", "alpha": 0.5}], 1)


# Lines out, with answers that need no model -----------------------------------------------------------------------------


def echo(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Answers that show what was in the batch, as last digits do."""
    together = "".join(str(item.prompt) for item in items)
    return [{"error": "bad"} if item.prompt == "e" else {"text": f"{item.prompt} é of {together}"} for item in items]


def run(path: Path, items: Sequence[Item], batch_size: int = 4, **options: Any) -> Results:
    with Results(path, {"the input": "x", "--batch-size": batch_size}, **options) as results:
        assert list(run_batches(items, results, echo, batch_size))[-1:] in ([len(items)], [])
    return results


ITEMS = [*read_items(b"a\nb\nc\nd\n\ne\nf\ng\nh\ni\nj")]


def test_a_run_cut_at_any_byte_carries_on_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # two thousand of them take long
    whole = tmp_path / "whole.jsonl"
    assert run(whole, ITEMS).errors == 2
    expected = whole.read_bytes()
    assert [line["line"] for line in lines_of(whole)] == list(range(1, 12))
    cut = tmp_path / "cut.jsonl"
    for length in range(len(expected) + 1):
        run(cut, ITEMS[:0], restart=True)
        cut.write_bytes(expected[:length])
        assert run(cut, ITEMS).errors == 2
        assert cut.read_bytes() == expected, length


def test_what_is_done_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    run(path, ITEMS)
    with Results(path, {"the input": "x", "--batch-size": 4}) as results:
        assert list(run_batches(ITEMS, results, lambda items: pytest.fail("asked again"), 4)) == []


def test_a_run_that_fails_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    def failing(items: Sequence[Item]) -> list[Mapping[str, Any]]:
        if items[0].line > 4:
            raise KeyboardInterrupt
        return echo(items)

    with Results(path, {"the input": "x", "--batch-size": 4}) as results, pytest.raises(KeyboardInterrupt):
        list(run_batches(ITEMS, results, failing, 4))
    assert len(lines_of(path)) == 4
    run(path, ITEMS)
    assert len(lines_of(path)) == len(ITEMS)


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    run(path, ITEMS)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"--batch-size was 4 and is 5.*--restart"):
        run(path, ITEMS, batch_size=5)
    with Results(path, {"the input": "x", "--batch-size": 4}), pytest.raises(ValueError, match="Another process is writing"):
        run(path, ITEMS)
    assert path.read_bytes() == before
    run(path, ITEMS, batch_size=5, restart=True)
    assert path.read_bytes() != before


def test_files_that_are_no_results_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("a letter\n")
    with pytest.raises(ValueError, match="what run it is of, cannot be read"):
        run(path, ITEMS)
    assert path.read_text() == "a letter\n"
    run(path, ITEMS, restart=True)
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in ([lines[1], lines[0], *lines[2:]], [b"\0\0\0\n", *lines[1:]], lines[1:]):
        path.write_bytes(b"".join(changed))
        with pytest.raises(ValueError, match=r"Line 1 of .* is not the result of line 1"):
            run(path, ITEMS)
        assert path.read_bytes() == b"".join(changed)


def test_every_text_can_be_written() -> None:
    assert json.loads(encoded({"text": "é\u2028\n"})) == {"text": "é\u2028\n"}
    assert encoded({"text": "é\n"}) == '{"text": "é\\n"}\n'.encode()
    assert json.loads(encoded({"id": "\ud800"})) == {"id": "\ud800"}


# Answers of models -----------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of random models: a character is a token."""

    pad_token_id = PAD
    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 60 + 4 for letter in text]}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return " ".join(map(str, ids))


def combination(**recipe: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gpt2", 1), reference=shared("gpt2", 2), **recipe)


def answers(
    lines: Sequence[Mapping[str, Any]],
    batch_size: int,
    model: Any = None,
    run: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """What a run of some options answers to lines."""
    items = read_items(b"\n".join(json.dumps(line).encode() for line in lines))
    answerer = Answerer(model or combination(), Letters(), {"max_new_tokens": 6, **(run or {})}, **options)
    return [a for start in range(0, len(items), batch_size) for a in answerer(items[start : start + batch_size])]


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
        ({"temperature": -1.0, "do_sample": True}, "strictly positive"),
        ({"max_new_tokens": "many"}, '`max_new_tokens` must be a number, got "many"'),
        ({"alpha": "strong"}, "'alpha' must be a number, got 'strong'"),
        ({"weights": {"tuned": [1.0]}}, "'tuned' must be a number, got [1.0]"),
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


def thousand(path: Path) -> None:
    """Lines of every kind: greedy, sampled, of another strength, shorter, and some that cannot be answered."""
    texts = [question.text for question in tiny.questions()[:1000]]
    kinds: list[dict[str, Any]] = [
        {},
        {"do_sample": True},
        {"alpha": 0.5},
        {"max_new_tokens": 2},
        {"do_sample": True, "top_k": 3},
    ]
    lines = [json.dumps({"id": f"q{i}", "prompt": text, **kinds[i % 5]}) for i, text in enumerate(texts)]
    for i in range(37, 1000, 97):
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


def test_a_thousand_lines_killed_and_started_again(tmp_path: Path) -> None:
    source, whole, killed = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    thousand(source)

    def command(output: Path) -> list[str]:
        options = ["--chat", "--max-new-tokens", "3", "--batch-size", "40", "--seed", "5"]
        return ["generate", *options, "--input", str(source), "--output", str(output)]

    done = CliRunner().invoke(app, command(whole))
    assert done.exit_code == 3 and "10 of 1000 lines could not be answered" in " ".join(done.output.split()), done.output
    results = lines_of(whole)
    assert [result["line"] for result in results] == list(range(1, 1001))
    assert [result.get("id") for result in results if "error" not in result] == [f"q{i}" for i in range(1000) if i % 97 != 37]

    for batches in (3, 5):  # after which the kill comes at some moment of the next one
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
    done = CliRunner().invoke(app, command(killed))
    assert done.exit_code == 3 and "carrying on" in done.output, done.output
    assert killed.read_bytes() == whole.read_bytes()


def test_standard_input_to_standard_output() -> None:
    question = tiny.questions()[1]
    done = CliRunner().invoke(app, ["generate", "--chat", "--input", "-"], input=f"{question.text}\n\n")
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
    done = CliRunner().invoke(app, ["generate", *(each.format(folder=tmp_path) for each in arguments)])
    assert done.exit_code == code
    assert message in done.stderr and "Traceback" not in done.output
    assert (tmp_path / "one").read_text() == "one"
