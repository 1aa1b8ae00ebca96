"""A server of the tiny family for tests, served one by one or batched, and clients of it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from openai import OpenAI
from transformers import ContinuousBatchingConfig

from hf_eft import EFTForCausalLM, tiny
from hf_eft.serving import EFTServer


def family(**recipe: Any) -> tuple[EFTForCausalLM, Any]:
    base, tuned, reference, tokenizer = tiny.load()
    return EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, **recipe), tokenizer


QUESTION = tiny.questions()[0]
CHAT = [{"role": "user", "content": QUESTION.text}]
LONG = "Question: Tell me all about it.\nAnswer: Of course! "

ONE_BY_ONE: dict[str, Any] = {}
BATCHED: dict[str, Any] = {
    "continuous_batching": True,
    "continuous_batching_config": ContinuousBatchingConfig(page_size=16, num_blocks=128, max_batch_tokens=64),
}
BOTH = pytest.mark.parametrize("options", [ONE_BY_ONE, BATCHED], ids=["one_by_one", "batched"])


def serving(options: dict[str, Any]) -> Iterator[tuple[EFTForCausalLM, Any, OpenAI]]:
    model, tokenizer = family()
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client:
        yield model, tokenizer, client


def fixtures() -> tuple[Any, Any, Any]:
    """For a module of tests: `one_by_one`, `batched`, and `served`, which is either."""

    @pytest.fixture(scope="module")
    def one_by_one() -> Iterator[tuple[EFTForCausalLM, Any, OpenAI]]:
        yield from serving(ONE_BY_ONE)

    @pytest.fixture(scope="module")
    def batched() -> Iterator[tuple[EFTForCausalLM, Any, OpenAI]]:
        yield from serving(BATCHED)

    @pytest.fixture(params=["one_by_one", "batched"])
    def served(request: pytest.FixtureRequest) -> tuple[EFTForCausalLM, Any, OpenAI]:
        return request.getfixturevalue(request.param)

    return one_by_one, batched, served


def connect(server: EFTServer, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, **options})


def complete(client: OpenAI, prompt: str, **options: Any) -> str:
    return client.completions.create(**{"model": "eft", "prompt": prompt, "max_tokens": 12, **options}).choices[0].text


def chat(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "eft", "messages": CHAT, "max_tokens": 12, **options})


def post(url: str, body: bytes, **headers: str) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def generated(model: EFTForCausalLM, tokenizer: Any, prompt: str, **options: Any) -> str:
    """What `generate` says."""
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, tokenizer=tokenizer, **{"max_new_tokens": 12, **options})[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(ids, skip_special_tokens=True)


def said(model: EFTForCausalLM, tokenizer: Any, ids: torch.Tensor, **options: Any) -> list[str]:
    """What `generate` says, of each row."""
    rows = model.generate(ids, attention_mask=torch.ones_like(ids), **{"max_new_tokens": 12, **options})
    return [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in rows]


def ids_of(tokenizer: Any, messages: Any = CHAT) -> torch.Tensor:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")[
        "input_ids"
    ]
