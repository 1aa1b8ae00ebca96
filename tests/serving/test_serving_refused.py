"""Requests that are refused are told why, and the server lives on."""

from __future__ import annotations

import itertools
import urllib.request
from typing import Any

import openai
import pytest
from served import LONG, complete, family, fixtures, generated, post

from hf_eft import Combination
from hf_eft.serving import EFTServer

one_by_one, batched, served = fixtures()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"extra_body": {"alpha": 1.0, "beta": 1.0}}, "Give one of"),
        ({"extra_body": {"alpha": 1.0, "weights": {"tuned": 1.0}}}, "Give one of"),
        ({"extra_body": {"alpha": "strong"}}, "alpha.*valid number"),
        ({"extra_body": {"alpha": True}}, "alpha.*valid number"),
        ({"extra_body": {"alpha": [1.0, 2.0]}}, "alpha.*valid number"),
        ({"extra_body": {"weights": {"polite": 1.0}}}, "no tuned members 'polite' to weight, but 'tuned'"),
        ({"extra_body": {"weights": {"base": 1.0}}}, "tuned members"),
        ({"extra_body": {"weights": {}}}, "at least 1"),
        ({"extra_body": {"gamma": 1.0}}, "gamma"),
        ({"extra_body": {"generation_config": "{"}}, "generation_config"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ""}, "no tokens"),
        ({"prompt": [1, 10**6]}, "must be from 0 to"),
    ],
    ids=str,
)
def test_bad_requests_are_told_why_and_the_server_lives_on(served: Any, options: dict[str, Any], reason: str) -> None:
    model, tokenizer, client = served
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=reason):
            complete(client, **{"prompt": LONG, "stream": stream, **options})
    assert complete(client, LONG) == generated(model, tokenizer, LONG)


def test_numbers_that_are_none_are_refused(served: Any) -> None:
    _, _, client = served
    numbers = {b"NaN": b"NaN is no JSON", b"Infinity": b"Infinity is no JSON", b"1e999": b"too large"}
    for name, number in itertools.product((b"alpha", b"temperature", b"frequency_penalty"), numbers):
        body = b'{"model": "eft", "prompt": "a", "' + name + b'": ' + number + b"}"
        with pytest.raises(urllib.error.HTTPError, match="400") as raised:
            post(f"{client.base_url}completions", body)
        assert numbers[number] in raised.value.read()
        raised.value.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"model": "eft"}', b"`messages`"),
        (b'{"messages": [{"content": "a"}]}', b"messages[0]: `role`"),
        (b'{"messages": [{"role": "user", "content": 1}]}', b"messages[0]: `content`"),
        (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": 1}', b"logit_bias"),
        (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"a": 1}}', b"ids of tokens"),
        (b'{"messages": [{"role": "judge", "content": "a"}]}', b"judge"),
    ],
    ids=str,
)
def test_bad_chats_are_refused(served: Any, body: bytes, reason: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer, client = served
    strict = "{% for m in messages %}{% if m.role == 'judge' %}{{ raise_exception('no ' + m.role) }}{% endif %}a{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", strict)
    with pytest.raises(urllib.error.HTTPError, match="400") as raised:
        post(f"{client.base_url}chat/completions", body)
    assert reason in raised.value.read()
    raised.value.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seed": 1, "temperature": 1.0}, "seed"),
        ({"max_tokens": 10**6}, "more than the"),
        ({"extra_body": {"generation_config": '{"num_beams": 2}'}}, "num_beams"),
        ({"extra_body": {"generation_config": '{"max_time": 2}'}}, "max_time"),
        ({"extra_body": {"generation_config": '{"cache_implementation": "static"}'}}, "cache_implementation"),
    ],
    ids=str,
)
def test_what_a_batch_cannot_do_is_refused(batched: Any, options: dict[str, Any], reason: str) -> None:
    model, tokenizer, client = batched
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=reason):
            complete(client, LONG, **{"stream": stream, **options})
    assert complete(client, LONG) == generated(model, tokenizer, LONG)


def test_a_model_that_cannot_be_batched_is_refused_at_the_start() -> None:
    model, tokenizer = family(combination=Combination.emulate(alpha=[1.0, 0.5]))
    with pytest.raises(NotImplementedError, match="schedule"):
        EFTServer(model, tokenizer, port=0, continuous_batching=True)
    with pytest.raises(ValueError, match="continuous_batching=True"):
        EFTServer(model, tokenizer, port=0, max_batch=4)
    with pytest.raises(ValueError, match="1 or more"):
        EFTServer(model, tokenizer, port=0, continuous_batching=True, max_batch=0)
