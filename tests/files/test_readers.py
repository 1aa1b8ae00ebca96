"""Every reader of a file on random files, a few with a fixed seed; and, one by one, what such files found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz import OPTIONS, at_random, fuzzed
from hypothesis import Phase, seed, settings
from readers import TARGETS, Target, check

from hf_eft import Combination
from hf_eft.files.json_lines import json_lines, parsed
from hf_eft.members.vocabulary import end_tokens
from hf_eft.programs.batch import Results, encoded

pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries warn of what they find in a file before they refuse it
DEEP = b'{"a":' * 300 + b"1" + b"}" * 300  # what Python reads, and cannot write again from every depth of calls


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_is_read_is_clear_or_refused_clearly(name: str) -> None:
    examples = 5 if TARGETS[name].slow else 60
    settings(max_examples=examples, phases=[Phase.generate, Phase.shrink], **OPTIONS)(seed(0)(fuzzed(name)))()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_is_valid_is_read(name: str) -> None:
    for data in TARGETS[name].seeds():
        if name not in ("evaluation_data", "evaluation", "paths"):  # each is right for some metrics, and nowhere on the Hub
            TARGETS[name].read(data)


@pytest.mark.parametrize(
    ("error", "clear"),
    [
        (ValueError("line 3 is empty"), True),
        (OSError(2, "no such file", "line 3"), True),
        (ValueError("it is empty"), False),
        (KeyError("line 3"), False),
        (RecursionError("line 3"), False),
        (UnicodeDecodeError("utf-8", b"line 3", 0, 1, "line 3"), False),
    ],
)
def test_what_a_clear_error_is(error: Exception, clear: bool) -> None:
    def read(data: bytes) -> None:
        raise error

    target = Target(read, list, "line 3")
    if clear:
        check(target, b"")
    else:
        with pytest.raises(AssertionError):
            check(target, b"")


def test_a_run_carries_on_with_the_next_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.quiet", lambda: None)
    (tmp_path / "messages.seed").write_text("7")
    at_random("messages", 0, tmp_path)
    assert int((tmp_path / "messages.seed").read_text()) == 8


# What they found --------------------------------------------------------------------------------------------------------


def test_json_that_could_not_be_written_again_is_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parsed(DEEP.decode())
    assert "nested too deeply" in json_lines(b'{"prompt": "a", "id": ' + DEEP + b"}")[0].error
    deepest = parsed('{"a":' * 200 + "1" + "}" * 200)
    assert json.loads(encoded({"id": deepest}))["id"] == deepest
    assert parsed("[]") == [] and parsed("3") == 3


@pytest.mark.parametrize(
    ("description", "error"),
    [
        ({"truncation": None}, "must have `coefficients` by member"),
        ({"coefficients": [1.0]}, "must have `coefficients` by member"),
        ({"coefficients": {"base": 10**400}}, "member 'base' must be a finite number"),
        ({"coefficients": {"base": 1.0}, "truncation": {"rule": "base"}}, "`truncation` of a recipe must have `rule` and `p`"),
        ({"coefficients": {"base": 1.0}, "truncation": [1]}, "`truncation` of a recipe must have `rule` and `p`"),
    ],
)
def test_a_recipe_that_is_none(description: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Combination.from_dict(description)


def of(name: str, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The first seed of a target, changed."""
    description = json.loads(TARGETS[name].seeds()[0])
    change(description)
    return json.dumps(description).encode()


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("evaluation_store", b"\x80", r"task--system.json is not a result of an evaluation"),
        ("evaluation_store", b'{"fingerprint": [1]}', r"task--system.json is not a result of an evaluation"),
        ("evaluation_store", b"[" * 100_000, r"task--system.json is not a result of an evaluation"),
        ("evaluation", b"[" * 100_000, r"evaluation.json is not an evaluation of this library"),
        ("evaluation", b"\x80", r"evaluation.json is not an evaluation of this library"),
        ("results", b"[" * 100_000 + b"\n", r"Line 1 of .*results.jsonl is not the result of line 1"),
        ("results_meta", b"[" * 100_000, r"results.jsonl.meta.json, which says what run it is of, cannot be read"),
        ("index", b'{"weight_map": [{}]}', "index of the member 'tuned' must have a `weight_map`"),
        ("index", b'{"weight_map": {"a": []}}', r"names \[\], which is no safetensors file"),
        ("index", json.dumps({"weight_map": {"a": "1" * 400 + ".safetensors"}}).encode(), "which is not in"),
        ("adapter_weights", b"", "adapter of the member 'tuned' .* has weights that cannot be read"),
        ("tokenizer", b"null", "tokenizer of the member 'tuned' cannot be loaded"),
        ("tokenizer", b'{"version": "3.0"}', "tokenizer of the member 'tuned' cannot be loaded"),
        ("tokenizer_config", b"null", "tokenizer of the member 'tuned' cannot be loaded"),
        ("folder_weights", b"\xff" * 300_000, "member 'tuned' cannot be loaded"),
        ("folder_generation", b'{"pad_token_id": []}', "generation_config.json in .* cannot be read"),
        ("member_generation", b'{"eos_token_id": {}}', "`eos_token_id` of a generation config must be a token"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_named(name: str, data: bytes, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        TARGETS[name].read(data)


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("description", lambda found: found.update(dtype=[]), r"the combination has `dtype` = \[\], expected"),
        ("description", lambda found: found.update(adapters=[{}]), r"The configuration's `adapters` must name a model"),
        ("description", lambda found: found.update(references=[{}]), r"The configuration's `references` must have"),
        ("description", lambda found: found.update(pad_token_id=[]), r"`pad_token_id` = \[\], expected the id of a token"),
        ("description", lambda found: found["text_config"].update(attention_bias=[]), "member 'base' cannot be read"),
        ("description", lambda found: found["tuned_config"].update(dtype=3), "the member 'tuned' has `dtype` = 3"),
        ("member_config", lambda found: found.update(attention_bias=[]), "cannot be (read|loaded)"),
        ("member_config", lambda found: found.update(num_attention_heads=0), "member 'tuned'"),
        ("adapter", lambda found: found.update(arrow_config=[]), "adapter of the member 'tuned' .* that PEFT does not read"),
        ("adapter", lambda found: found.update(task_type=[]), "adapter of the member 'tuned' .* that PEFT does not read"),
        ("adapter", lambda found: found.update(modules_to_save=3), "adapter of the member 'tuned' .* that PEFT does not read"),
    ],
)
def test_a_description_with_something_else_in_it(name: str, change: Callable[[dict[str, Any]], Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        TARGETS[name].read(of(name, change))


def test_a_repository_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="repository 'owner/name' cannot be found"):
        TARGETS["paths"].read(b"owner/name")


def test_end_tokens_are_tokens() -> None:
    from transformers import GenerationConfig

    assert end_tokens(GenerationConfig(eos_token_id=[1, 2])) == [1, 2]
    for wrong in ("1", [None], 1.5):
        config = GenerationConfig()
        config.eos_token_id = wrong
        with pytest.raises(ValueError, match="must be a token or a list of them"):
            end_tokens(config)


def test_results_that_are_nested_without_end_are_of_another_run(tmp_path: Path) -> None:
    with Results(tmp_path / "results", {"a": 1}):
        pass
    (tmp_path / "results").write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(ValueError, match="the file was changed"), Results(tmp_path / "results", {"a": 1}):
        pass
