"""What clients of the OpenAI API ask for, served both ways: what ends an answer, what is likely in it, and how long it may be."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch
from served import BATCHED, BOTH, LONG, QUESTION, chat, complete, connect, family, fixtures, generated, ids_of, said
from transformers import LogitsProcessor

from hf_eft.serving import EFTServer

one_by_one, batched, served = fixtures()


# What ends an answer --------------------------------------------------------------------------------------------------


def ids_of_text(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_stop_strings_end_an_answer_and_are_no_part_of_it(served: Any) -> None:
    model, tokenizer, client = served
    whole = generated(model, tokenizer, LONG)
    first, second = (len(tokenizer.decode(ids_of_text(tokenizer, whole)[:n])) for n in (2, 4))  # where tokens end
    for start, end in (
        (first - 1, first + 1),
        (second - 1, second + 1),
        (first + 1, first + 2),
    ):  # across tokens, and within one
        stop = whole[start:end]
        expected = whole[: whole.index(stop)]
        answer = client.completions.create(model="eft", prompt=LONG, max_tokens=12, stop=["never said", stop])
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "stop")
        parts = list(client.completions.create(model="eft", prompt=LONG, max_tokens=12, stop=stop, stream=True))
        assert "".join(part.choices[0].text for part in parts) == expected
        assert parts[-1].choices[0].finish_reason == "stop"
    early = client.completions.create(model="eft", prompt=LONG, max_tokens=12, stop=whole[3:6])
    assert early.usage.completion_tokens < 12
    assert complete(client, LONG, stop=whole[-3:] + "never") == whole  # what was held back is told in the end
    for nothing in ([], "", [""]):
        assert complete(client, LONG, stop=nothing) == whole


def test_stop_strings_of_beams_are_those_of_generate(one_by_one: Any) -> None:
    model, tokenizer, client = one_by_one
    word = generated(model, tokenizer, LONG, num_beams=2).split()[1]
    stopped = generated(model, tokenizer, LONG, num_beams=2, stop_strings=word)
    assert complete(client, LONG, stop=word, extra_body={"generation_config": {"num_beams": 2}}) == stopped.split(word)[0]


def test_an_answer_that_its_end_token_ends_at_the_limit_was_stopped(served: Any) -> None:
    _, _, client = served
    count = chat(client, max_tokens=60).usage.completion_tokens
    for limit, reason in ((count, "stop"), (count - 1, "length")):
        assert chat(client, max_tokens=limit).choices[0].finish_reason == reason
        assert list(chat(client, max_tokens=limit, stream=True))[-1].choices[0].finish_reason == reason


# What is likely -------------------------------------------------------------------------------------------------------


class Penalised(LogitsProcessor):
    """OpenAI's formula, counted anew at every step."""

    def __init__(self, start: int, presence: float, frequency: float, bias: dict[int, float]) -> None:
        self.start, self.presence, self.frequency, self.bias = start, presence, frequency, bias

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        changed = scores.clone()
        tokens = input_ids[0, self.start :].tolist()
        for token in set(tokens):
            changed[0, token] -= self.presence + self.frequency * tokens.count(token)
        for token, value in self.bias.items():
            changed[0, token] += value
        return changed


def test_penalties_and_biases_are_openais(served: Any) -> None:
    model, tokenizer, client = served
    ids = ids_of(tokenizer)
    first = model.generate(ids, max_new_tokens=1)[0, -1].item()
    answers = set()
    for presence, frequency, bias in ((2.0, 0.0, {}), (0.0, 2.0, {}), (-2.0, -2.0, {}), (0.0, 0.0, {first: -100.0})):
        processor = Penalised(ids.shape[1], presence, frequency, bias)
        expected = said(model, tokenizer, ids, max_new_tokens=24, logits_processor=[processor], eos_token_id=[])[0]
        answer = chat(
            client,
            max_tokens=24,
            presence_penalty=presence,
            frequency_penalty=frequency,
            logit_bias={str(token): int(value) for token, value in bias.items()},
            extra_body={"generation_config": {"eos_token_id": [-1]}},
        )
        assert answer.choices[0].message.content == expected
        answers.add(expected)
    assert len(answers) >= 3


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 20},
        {"suppress_tokens": [3, 9]},
        {"bad_words_ids": [[14]]},
    ],
    ids=str,
)
def test_options_that_look_back_are_heeded(served: Any, options: dict[str, Any]) -> None:
    model, tokenizer, client = served
    prompt = QUESTION.prompt
    expected = generated(model, tokenizer, prompt, max_new_tokens=24, **options)
    assert complete(client, prompt, max_tokens=24, extra_body={"generation_config": options}) == expected


def test_a_row_that_draws_itself_draws_from_the_same_tokens(batched: Any) -> None:
    model, tokenizer, client = batched
    options = {"repetition_penalty": 1.5, "min_p": 0.9}  # leaves the likeliest tokens only
    expected = generated(model, tokenizer, LONG, repetition_penalty=1.5)
    assert complete(client, LONG, temperature=0.01, extra_body={"generation_config": options}) == expected


def test_the_tuned_members_own_options_hold_in_a_batch() -> None:
    model, tokenizer = family()
    model.generation_config.no_repeat_ngram_size = 1
    options = {"max_new_tokens": 24, "eos_token_id": []}
    expected = generated(model, tokenizer, LONG, **options)
    body = {"max_tokens": 24, "extra_body": {"generation_config": {"eos_token_id": [-1]}}}
    with EFTServer(model, tokenizer, port=0, **BATCHED) as server, connect(server) as client:
        assert complete(client, LONG, **body) == expected
    other = {"generation_config": {"no_repeat_ngram_size": 0}, **BATCHED}
    plain = generated(model, tokenizer, LONG, **options, no_repeat_ngram_size=0)
    with EFTServer(model, tokenizer, port=0, **other) as server, connect(server) as client:
        assert complete(client, LONG, **body) == plain != expected


# Contexts -------------------------------------------------------------------------------------------------------------


@BOTH
def test_what_is_left_of_the_context_is_the_default(options: dict[str, Any]) -> None:
    model, tokenizer = family()
    model.generation_config.eos_token_id = None
    for member in model.members.values():
        member.config.max_position_embeddings = 40
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client:
        usage = client.completions.create(model="eft", prompt=LONG).usage
        assert usage.total_tokens == 40
        for asked, reason in (
            ({"max_tokens": usage.completion_tokens + 1}, "40 positions of the member"),
            ({"prompt": LONG * 4}, "too long"),
        ):
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError, match=reason):
                    complete(client, **{"prompt": LONG, "stream": stream, "max_tokens": None, **asked})
        with pytest.raises(openai.BadRequestError, match="too long"):
            chat(client, messages=[{"role": "user", "content": LONG * 4}])
        with pytest.raises(openai.BadRequestError, match="too long"):
            client.responses.create(model="eft", input=LONG * 4)
        assert complete(client, LONG, max_tokens=usage.completion_tokens)
