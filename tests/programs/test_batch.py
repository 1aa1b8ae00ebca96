"""Batch runs: whatever a line says and wherever a run is cut, every line has its one result, and the same one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from letters import answers, lines_of

from hf_eft.programs.batch import Item, Results, encoded, read_items, run_batches

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


ITEMS = read_items(b"a\nb\nc\nd\n\ne\nf\ng\nh\ni\nj")


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
