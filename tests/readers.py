"""
Everything that reads a file or a text of a user: one target for each, with valid files to begin with.

A target takes bytes. It may raise a `ValueError` or an `OSError` that names the file, the line or the field (`Target.names`); any other
error, and any of these without a name, is a fault.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import typer
from random_bodies import OPTIONS
from reader_files import models, of_file, of_json, place, replaced

from hf_eft import Combination, EFTConfig, hub
from hf_eft.bytes.tokens import token_bytes
from hf_eft.cli.models import parsed_truncation
from hf_eft.cli.options import generation_options, named_numbers, strengths
from hf_eft.evaluation import Evaluation
from hf_eft.evaluation.custom_data import METRICS, custom_task
from hf_eft.evaluation.resume import Store
from hf_eft.files.json_lines import json_lines, looks_like_json, parsed, shown, text_lines, whole_text
from hf_eft.files.trust import check_weights, inside
from hf_eft.folders.loading import load_tokenizer
from hf_eft.folders.places import Place, description_of, source_of
from hf_eft.programs.batch import Results, check_results, encoded, read_items
from hf_eft.programs.options import check_name, check_together, read_options
from hf_eft.prompts.messages import read_messages


@dataclass(frozen=True)
class Target:
    """A reader."""

    read: Callable[[bytes], Any]
    seeds: Callable[[], list[bytes]]
    names: str = "."  # what an error must match
    slow: bool = False  # loads a model


def _value(data: bytes) -> Any:
    """The JSON value that bytes are; a `ValueError` if they are none."""
    return parsed(data.decode("utf-8", "surrogatepass"))


# The readers ------------------------------------------------------------------------------------------------------------


def _lines(data: bytes) -> None:
    lines = text_lines(data)
    looks_like_json(lines)
    for line in json_lines(data):
        assert line.error is None or line.value is None
        shown(line.value)
    with contextlib.suppress(ValueError):
        assert "\r" not in whole_text(data)


def _items(data: bytes) -> None:
    for as_json in (None, True, False):
        for number, item in enumerate(read_items(data, as_json), start=1):
            assert item.line == number and item.error != ""
            result = {"line": item.line, "id": item.id, "error": item.error or ""}
            assert json.loads(encoded(result)) == result


def _messages(data: bytes) -> None:
    given = _value(data)
    for read in read_messages(given), read_messages(given, developer_as_system=True):
        assert read_messages(read) == read, "what was read is read as something else"


def _options(data: bytes) -> None:
    given = _value(data)
    if isinstance(given, dict):
        for name in given:
            check_name(name)
        read = read_options(given)
        assert read_options(read) == read
        check_together(read, None)


def _recipe(data: bytes) -> None:
    given = _value(data)
    if isinstance(given, dict):
        found = Combination.from_dict(given)
        assert Combination.from_dict(found.to_dict()) == found


def _data_of_evaluations(data: bytes) -> None:
    path = place() / "data.jsonl"
    path.write_bytes(data)
    problems = []
    for metric in METRICS:
        try:
            custom_task(path, metric)
        except ValueError as error:
            problems.append(error)
    if problems:
        raise problems[-1]


def _store(data: bytes) -> None:
    store = Store(place() / "store", restart=False)
    store._path("task", "system").write_bytes(data)
    store.find("task", "system", {"model": "a", "task": "b"})


def _evaluation(data: bytes) -> None:
    path = place() / "evaluation.json"
    path.write_bytes(data)
    Evaluation.from_json(path)


def _results(data: bytes, meta: bool) -> None:
    path, identity = place() / "results.jsonl", {"input": "a", "--seed": 0}
    about = path.with_name(path.name + ".meta.json")
    path.write_bytes(b'{"line": 1, "text": "a"}\n' if meta else data)
    about.write_bytes(data if meta else json.dumps({"of": "a run", **identity}).encode())
    check_results(path, identity)
    with Results(path, identity) as results:
        results.append([{"line": results.kept + 1, "text": "b"}])
    assert path.read_bytes().endswith(b'"text": "b"}\n')


def _description(data: bytes) -> None:
    folder = place() / "described"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(data)
    config = EFTConfig.from_dict(description_of(Place.of(folder)))
    Combination.from_dict(config.combination)


def _in_folder(data: bytes, name: str) -> None:
    with replaced(models() / "saved" / name, data):
        hub.load(models() / "saved", progress=lambda said: None)


def _member(data: bytes, name: str) -> None:
    folder = models() / "plain"
    with replaced(folder / "tuned" / name, data):
        hub.load({each: folder / each for each in ("base", "tuned", "reference")}, progress=lambda said: None)


def _index(data: bytes) -> None:
    folder = place() / "shards"
    folder.mkdir(exist_ok=True)
    (folder / "model-1.safetensors").touch()
    (folder / "model.safetensors.index.json").write_bytes(data)
    check_weights("tuned", folder)


def _adapter(data: bytes, name: str) -> None:
    from hf_eft.members.adapters.checks import checked_folder

    with replaced(models() / "adapter" / name, data):
        checked_folder("tuned", models() / "adapter")


def _tokenizer(data: bytes, name: str) -> None:
    folder = place() / "tokenizer"
    if not folder.exists():
        shutil.copytree(models() / "plain" / "tuned", folder)
    with replaced(folder / name, data):
        tokenizer = load_tokenizer("tuned", folder, local_files_only=True)
        table = token_bytes(tokenizer)
        assert all(token is None or isinstance(token, bytes) for token in table)


def _command_line(data: bytes) -> None:
    arguments = data.decode("utf-8", "surrogateescape").split("\n")
    for read in (
        lambda: generation_options(arguments),
        lambda: named_numbers(arguments, "--weight"),
        lambda: strengths(arguments, "--weight"),
        lambda: parsed_truncation(arguments[0]),
    ):
        try:
            read()
        except typer.BadParameter as error:
            assert error.format_message()


def _paths(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    source_of(text)
    with contextlib.suppress(ValueError):
        assert inside(place(), text).resolve().is_relative_to(place().resolve())
    Place.of(text, local_files_only=True)


_LINES = of_json(
    {"prompt": "a", "alpha": 0.5}, {"messages": [{"role": "user", "content": "b"}], "id": [1, {"a": "é"}]}, [{"prompt": "a"}]
)
_CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
_LINE = r"line \d|array|\bline\b"
TARGETS: dict[str, Target] = {
    "json_lines": Target(_lines, lambda: [*_LINES(), b"one\r\ntwo\n", "\ufeffa\n".encode("utf-16-le")], _LINE),
    "batch_items": Target(_items, lambda: [*_LINES(), b"\n".join(_LINES())], _LINE),
    "messages": Target(
        _messages,
        of_json(
            [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "tool_calls": [_CALL]}],
            [{"role": "developer", "content": "a"}, {"role": "tool", "content": "b", "tool_call_id": "c", "name": "n"}],
        ),
    ),
    "options": Target(
        _options,
        of_json(
            {"num_beams": 2, "early_stopping": True, "sequence_bias": [[[1], 2.0]]},
            {"stop_strings": ["a"], "temperature": 0.5},
            {"eos_token_id": [1, 2], "bad_words_ids": [[1]]},
            dict.fromkeys(OPTIONS),
        ),
    ),
    "recipe": Target(
        _recipe,
        of_json(
            {"coefficients": {"base": 1.0, "tuned": [1.0, 0.5], "reference": -1.0}, "truncation": {"rule": "keep", "p": 0.9}}
        ),
    ),
    "evaluation_data": Target(
        _data_of_evaluations,
        lambda: [
            b'{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "(d|e)"}\n',
            b'[{"prompt": "a", "choices": ["b", "c"], "gold": 1}, {"prompt": "a", "choices": ["b", "c"], "gold": 0}]',
            b'{"messages": [{"role": "user", "content": "a"}], "answer": "b"}\n{"prompt": "c", "answer": "d"}',
        ],
        r"data\.jsonl",
    ),
    "evaluation_store": Target(_store, of_json({"fingerprint": {"model": "a", "task": "b"}, "items": [1.0]}), "task--system"),
    "evaluation": Target(
        _evaluation,
        of_json(
            {
                "format": 1,
                "settings": {},
                "replies": {},
                "scores": {"t": {"base": {"acc": {"value": 0.5, "items": [0.0, 1.0]}}}},
            }
        ),
        r"evaluation\.json",
    ),
    "results": Target(
        functools.partial(_results, meta=False),
        lambda: [b'{"line": 1, "text": "a"}\n{"line": 2, "error": "b"}\n{"line": 3, "te'],
        "results",
    ),
    "results_meta": Target(
        functools.partial(_results, meta=True), of_json({"of": "a run", "input": "a", "--seed": 0}), "results"
    ),
    "description": Target(
        _description,
        of_file("saved", "config.json"),
        "described|configuration|member|combination|recipe|coefficient|[Tt]runcation|key",
    ),
    "index": Target(
        _index, of_json({"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}), "tuned|index"
    ),
    "adapter": Target(
        functools.partial(_adapter, name="adapter_config.json"), of_file("adapter", "adapter_config.json"), "adapter"
    ),
    "adapter_weights": Target(
        functools.partial(_adapter, name="adapter_model.safetensors"),
        of_file("adapter", "adapter_model.safetensors"),
        "adapter",
    ),
    "tokenizer": Target(
        functools.partial(_tokenizer, name="tokenizer.json"), of_file("plain/tuned", "tokenizer.json"), "token", slow=True
    ),
    "tokenizer_config": Target(
        functools.partial(_tokenizer, name="tokenizer_config.json"),
        of_file("plain/tuned", "tokenizer_config.json"),
        "token",
        slow=True,
    ),
    "folder": Target(functools.partial(_in_folder, name="config.json"), of_file("saved", "config.json"), slow=True),
    "folder_generation": Target(
        functools.partial(_in_folder, name="generation_config.json"), of_file("saved", "generation_config.json"), slow=True
    ),
    "folder_weights": Target(
        functools.partial(_in_folder, name="members/tuned/model.safetensors"),
        of_file("saved", "members/tuned/model.safetensors"),
        "tuned",
        slow=True,
    ),
    "member_config": Target(
        functools.partial(_member, name="config.json"), of_file("plain", "tuned/config.json"), "tuned", slow=True
    ),
    "member_generation": Target(
        functools.partial(_member, name="generation_config.json"),
        of_file("plain", "tuned/generation_config.json"),
        "tuned|eos_token_id",
        slow=True,
    ),
    "command_line": Target(
        _command_line,
        lambda: [
            b"--num-beams\n2\n--do-sample=true\nhello",
            b"--sequence-bias\n[[[1], 2.0]]",
            b"tuned=0.5\nbase=1e9",
            b"keep:0.9",
        ],
    ),
    "paths": Target(
        _paths, lambda: [b"owner/name", b"members/tuned/model.safetensors", b"../a", b"C:\\a", b"a/snapshots/" + b"0" * 40]
    ),
}


def check(target: Target, data: bytes) -> None:
    """Read, and raise `AssertionError` for an error that is not a clear one."""
    try:
        target.read(data)
    except (ValueError, OSError) as error:
        if isinstance(error, UnicodeError | json.JSONDecodeError) and target.names != ".":
            raise AssertionError(f"an error without a place: {error!r}") from error
        if not str(error) or not re.search(target.names, str(error)):
            raise AssertionError(f"an error without a name: {error!r}") from error
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"a foreign error: {error!r:.500}") from error
