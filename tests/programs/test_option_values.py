"""Values of options: every option has its own, and what would end in an endless loop or in a foreign error is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from families import VOCAB, build

from hf_eft import EFTForCausalLM
from hf_eft.programs.answer import Answerer
from hf_eft.programs.option_values import check_tokens, read_value
from hf_eft.programs.options import option_names


@pytest.mark.parametrize("name", sorted(option_names()))
def test_no_option_takes_anything(name: str) -> None:
    for nonsense in ({"no": ["such"]}, [[None]], [[]]):
        with pytest.raises(ValueError, match=name):
            read_value(name, nonsense)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("encoder_no_repeat_ngram_size", 1e308, "must be 65536 or less, got 1e+308"),  # a list of as many lists: no end
        ("assistant_confidence_threshold", 10**30, "must be from 0 to 1"),
        ("assistant_early_exit", "1", 'must be a number, got "1"'),
        ("num_beams", 0, "must be 1 or more, got 0"),
        ("num_beams", 10**6, "must be 1024 or less"),
        ("prefill_chunk_size", 0, "must be 1 or more"),
        ("max_cache_len", 2**31, "must be 16777216 or less"),
        ("temperature", 1e-320, "must be from 0.0001 to 10000, got 1e-320"),  # 0 in float32
        ("repetition_penalty", float("nan"), "must be from 0.0001 to 10000, got NaN"),
        ("early_stopping", 1, 'must be one of true, false, "never", got 1'),
        ("num_assistant_tokens_schedule", "steady", "must be one of"),
        ("begin_suppress_tokens", [True], "must be a number, got true"),
        ("suppress_tokens", 3, "must be a list of tokens, got 3"),
        ("suppress_tokens", [-1], "must be 0 or more"),
        ("eos_token_id", -2, "must be -1 or more"),
        ("bad_words_ids", [3], "must be a list of lists of tokens, got 3"),
        ("sequence_bias", {"3": 1.0}, 'must be [[tokens, bias], ...], got "3"'),
        ("sequence_bias", [[[3], 1e30]], "must be from -1e+09 to 1e+09"),
        ("sequence_bias", [[[3]]], "must be [[tokens, bias], ...], got [[3]]"),
        ("exponential_decay_length_penalty", [2], "must be [start, factor], got [2]"),
        ("exponential_decay_length_penalty", [2, 1e30], "must be from 0.0001 to 10000"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_named(name: str, value: Any, error: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_value(name, value)
    assert f"`{name}`" in str(caught.value) and error in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eos_token_id", -1),
        ("eos_token_id", [3, 5]),
        ("sequence_bias", {(3,): 1.0}),
        ("sequence_bias", [[[3, 5], -2]]),
        ("bad_words_ids", [[3], [5, 7]]),
        ("exponential_decay_length_penalty", (2, 1.5)),
        ("early_stopping", "never"),
        ("temperature", 0),
        ("top_k", 0),
        ("length_penalty", -1.0),
    ],
)
def test_what_has_a_meaning_stays_as_it_is(name: str, value: Any) -> None:
    assert read_value(name, value) is value or read_value(name, value) == value
    check_tokens({name: value}, VOCAB)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suppress_tokens", [3, VOCAB]),
        ("begin_suppress_tokens", [VOCAB]),
        ("eos_token_id", VOCAB),
        ("forced_eos_token_id", [3, VOCAB]),
        ("pad_token_id", VOCAB),
        ("bad_words_ids", [[3], [VOCAB]]),
        ("sequence_bias", [[[3, VOCAB], 1.0]]),
    ],
)
def test_a_token_that_is_not_there_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` names the token {VOCAB}, and the last one is {VOCAB - 1}"):
        check_tokens({name: value}, VOCAB)
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=build("llama", 1), reference=build("llama", 2))
    with pytest.raises(ValueError, match=f"`{name}` names the token {VOCAB}"):
        Answerer(model, None, {"max_new_tokens": 2, name: value})
