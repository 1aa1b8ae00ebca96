"""A server whose members have different tokenizers: what clients see is text, and the base's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from served import connect

from hf_eft import EFTForCausalLM, tiny
from hf_eft.serving import EFTServer

QUESTION = tiny.questions()[90]
ANSWER = " Of course! Rosa Lawson was born in Quito. Happy to help!"


def across(vocabulary: str) -> tuple[EFTForCausalLM, Any]:
    base, *_, tokenizer = tiny.load()
    tuned, reference, second = tiny.load_second()
    cutters = {"base": tokenizer, "tuned": second, "reference": second}
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=cutters, vocabulary=vocabulary)
    return model, model.tokenizers["tuned"]


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    with EFTServer(*across("tokens"), port=0) as server, connect(server) as client:
        yield client


def test_chats_and_completions(client: OpenAI) -> None:
    chat = client.chat.completions.create(
        model="eft",
        messages=[{"role": "user", "content": QUESTION.text}],
        max_tokens=40,
        temperature=0,
        logprobs=True,
        top_logprobs=1,
    )
    assert chat.choices[0].message.content == ANSWER
    told = chat.choices[0].logprobs.content
    assert b"".join(bytes(each.bytes) for each in told if each.token != "<eos>").decode() == ANSWER
    done = client.completions.create(
        model="eft", prompt=QUESTION.prompt, max_tokens=40, temperature=0, stop=["urse!"], logprobs=1
    )
    assert (done.choices[0].text, done.choices[0].finish_reason) == (" Of co", "stop")
    several = client.completions.create(
        model="eft", prompt=QUESTION.prompt, max_tokens=4, temperature=1, seed=3, n=2, frequency_penalty=0.5
    )
    assert len(several.choices) == 2


@pytest.mark.parametrize("vocabulary", ["tokens", "bytes"])
def test_batching_continuously_is_refused_by_name(vocabulary: str) -> None:
    with pytest.raises(NotImplementedError, match=r"the member 'base' .*LevelModel"):
        EFTServer(*across(vocabulary), port=0, continuous_batching=True)


def test_bytes_are_served_too() -> None:
    with EFTServer(*across("bytes"), port=0) as server, connect(server) as client:
        chat = [{"role": "user", "content": QUESTION.text}]
        said = client.chat.completions.create(model="eft", messages=chat, max_tokens=80, temperature=0)
    assert said.choices[0].message.content == ANSWER
