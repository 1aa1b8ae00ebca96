"""Options of `generate` as users give them: null, none, sampling, and what is refused by name rather than dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from letters import answers, combination
from transformers import GenerationConfig

from hf_eft.cli.options import generation_options
from hf_eft.programs.conversation import ChatSession
from hf_eft.programs.options import check_name, check_together, option_names, read_options

SAMPLING = {
    "temperature": 0.7, "top_p": 1.0, "top_k": 3, "min_p": 0.1, "top_h": 0.4, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    "given, read",
    [
        ({"top_k": None, "num_beams": 2}, {"num_beams": 2}),
        ({"stop_strings": [], "bad_words_ids": [], "sequence_bias": {}}, {}),
        ({"stop_strings": ["a", "b"]}, {"stop_strings": ["a", "b"]}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.0, "top_p": 0.9, "do_sample": False}, {"do_sample": False}),
        ({"temperature": None, "do_sample": False}, {"do_sample": False}),
        ({"do_sample": True}, {"do_sample": True}),
        ({"max_new_tokens": 20.0, "top_k": 3.0}, {"max_new_tokens": 20, "top_k": 3, "do_sample": True}),
        ({"repetition_penalty": 2}, {"repetition_penalty": 2}),
        *(({name: value}, {name: value, "do_sample": True}) for name, value in SAMPLING.items()),
    ],
)
def test_what_is_given_is_what_is_meant(given: dict[str, Any], read: dict[str, Any]) -> None:
    found = read_options(given)
    assert found == read == read_options(found)
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in read.items()}


@pytest.mark.parametrize(
    "before, given, read",
    [
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0}, {"do_sample": False}),
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": False}, {"do_sample": False}),
        ({"do_sample": False}, {"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"do_sample": True, "top_p": 0.9}, {"temperature": 0.5}, {"do_sample": True, "top_p": 0.9, "temperature": 0.5}),
        ({"max_new_tokens": 5, "stop_strings": "a"}, {"max_new_tokens": None}, {"max_new_tokens": 5, "stop_strings": "a"}),
        ({"max_new_tokens": 5, "stop_strings": "a"}, {"stop_strings": []}, {"max_new_tokens": 5}),
    ],
)  # fmt: skip
def test_a_line_goes_before_its_run(before: dict[str, Any], given: dict[str, Any], read: dict[str, Any]) -> None:
    assert read_options(given, before) == read


@pytest.mark.parametrize(
    "given, error",
    [
        ({"temperature": 0.7, "do_sample": False}, "`temperature` says how tokens are drawn, but `do_sample` is false"),
        ({"top_p": 0.7, "do_sample": False}, "`top_p` says how"),
        ({"stop_strings": ""}, "`stop_strings` has an empty text"),
        ({"stop_strings": ["a", ""]}, "`stop_strings` has an empty text"),
        ({"stop_strings": ["a", None]}, "each of `stop_strings` must be a text, got nothing"),
        ({"stop_strings": 3}, "each of `stop_strings` must be a text, got 3"),
        ({"eos_token_id": []}, "`eos_token_id` is empty"),
        ({"do_sample": "False"}, '`do_sample` must be true or false, got "False"'),
        ({"do_sample": 1}, "`do_sample` must be true or false, got 1"),
        ({"max_new_tokens": 2.5}, "`max_new_tokens` must be a whole number, got 2.5"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be a number, got true"),
        ({"max_new_tokens": float("inf")}, "`max_new_tokens` must be a whole number"),
        ({"temperature": "hot"}, '`temperature` must be a number, got "hot"'),
        ({"pad_token_id": -1}, "`pad_token_id` must be 0 or more, got -1"),
    ],
)
def test_what_cannot_be_heeded_is_named(given: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_options(given)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    "options, remedy, error",
    [
        ({"early_stopping": True}, {"num_beams": 2}, "`early_stopping` is for beams"),
        ({"length_penalty": 2.0}, {"num_beams": 2}, "`length_penalty` is for beams"),
        ({"num_assistant_tokens": 3}, {"prompt_lookup_num_tokens": 3}, "`num_assistant_tokens` is for drafted tokens"),
        ({"max_cache_len": 99}, {"cache_implementation": "static"}, "`max_cache_len` is for static caches"),
    ],
)
def test_options_of_another_way_of_decoding_are_refused(options: dict[str, Any], remedy: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        check_together(options, 1)
    check_together({**options, **remedy}, 1)
    assert error in answers([{"prompt": "a", **options}], 1)[0]["error"]
    with pytest.raises(ValueError, match=error):
        answers([], 1, run=options)
    check_together({"num_assistant_tokens": 3}, 1, drafted=True)
    check_together({"length_penalty": 2.0}, 4)  # the model's own beams


def test_every_option_of_generate_is_taken_or_refused_with_a_reason() -> None:
    for name in GenerationConfig().to_dict():
        if name.startswith("_") or name in option_names():
            continue
        with pytest.raises(ValueError, match=f"'{name}' is no option here: ..."):
            check_name(name)
    for name in ("max_length", "guidance_scale", "token_healing", "forced_bos_token_id", "output_scores", "num_beam_groups"):
        assert "is no option here" in answers([{"prompt": "a", name: 3}], 1)[0]["error"]
        with pytest.raises(typer.BadParameter, match=f"--{name.replace('_', '-')} is no option here"):
            generation_options([f"--{name.replace('_', '-')}", "3"])


@pytest.mark.parametrize("name", SAMPLING)
def test_no_option_of_sampling_is_greedy_in_silence(name: str) -> None:
    """In a line, for a run, on a command line: what it draws is what it draws with `do_sample`."""
    line = {"prompt": "of", name: SAMPLING[name]}
    drawn = [answers([{**line, "do_sample": True, "seed": seed}], 1)[0] for seed in range(3)]
    assert [answers([{**line, "seed": seed}], 1)[0] for seed in range(3)] == drawn
    assert [answers([{"prompt": "of", "seed": seed}], 1, run={name: SAMPLING[name]})[0] for seed in range(3)] == drawn
    options, _ = generation_options([f"--{name.replace('_', '-')}", str(SAMPLING[name])])
    assert options == {name: SAMPLING[name], "do_sample": True}


def test_a_line_without_heat_is_greedy_in_a_run_that_samples() -> None:
    greedy = answers([{"prompt": "of"}], 1)
    assert answers([{"prompt": "of", "temperature": 0}], 1, run={"temperature": 2.0, "top_p": 0.9}) == greedy
    assert answers([{"prompt": "of", "do_sample": False}], 1, run={"temperature": 2.0}) == greedy
    assert answers([{"prompt": "of"}], 1, run={"temperature": 2.0}) != greedy


@pytest.mark.parametrize(
    "arguments, options",
    [
        (["--do-sample", "True", "--use-cache", "False"], {"do_sample": True, "use_cache": False}),
        (["--top-k", "null", "--num-beams=2"], {"num_beams": 2}),
        (["--top-k", "None"], {}),
        (["--stop-strings", '["a", "b"]'], {"stop_strings": ["a", "b"]}),
        (["--stop-strings=a=b"], {"stop_strings": "a=b"}),
        (["--stop-strings", "[]"], {}),
    ],
)
def test_values_of_a_command_line(arguments: list[str], options: dict[str, Any]) -> None:
    assert generation_options(arguments) == (options, [])


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["--temperature", "NaN"], '`temperature` must be a number, got "NaN"'),
        (["--temperature", "0.7", "--do-sample", "false"], "leave one of them out"),
        (["--top-k", "3", "--top-k", "4"], "--top-k is given twice"),
        (["--stop-strings", ""], "has an empty text"),
        (["--temprature", "1"], "--temprature is no option of `generate`; did you mean --temperature?"),
    ],
)
def test_values_that_a_command_line_cannot_have(arguments: list[str], error: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        generation_options(arguments)
    assert error in str(caught.value)


def test_a_conversation_reads_its_options_so_too() -> None:
    model = combination()
    with pytest.raises(ValueError, match="`length_penalty` is for beams"):
        ChatSession(model, None, options={"length_penalty": 2.0})
    with pytest.raises(ValueError, match="`do_sample` is false"):
        ChatSession(model, None, options=json.loads('{"top_p": 0.5, "do_sample": false}'))
