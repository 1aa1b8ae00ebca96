"""Drafts in the server: the tokens are the same, and only requests that can be drafted for are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import CHAT, ONE_BY_ONE, QUESTION, connect, family, serving

from hf_eft import Combination, EFTForCausalLM
from hf_eft.serving import EFTServer, dispatch


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    yield from serving(ONE_BY_ONE)


@pytest.fixture(scope="module")
def drafted() -> Iterator[Any]:
    yield from serving({"speculative": True})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each request that was generated, whether somebody was asked to draft."""
    seen: list[bool] = []
    whole = EFTForCausalLM.generate

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("assistant_model") is not None)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(EFTForCausalLM, "generate", generate)
    return seen


SAME = [
    {},
    {"extra_body": {"alpha": 0.25}},
    {"extra_body": {"weights": {"tuned": 1.5}}},
    {"stop": ["hockey", "Happy"]},
    {"max_tokens": 3},
    {"frequency_penalty": 1.0, "logit_bias": {"300": 5.0}},
    {"n": 2},
    {"extra_body": {"generation_config": {"repetition_penalty": 1.3}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "one", "schema": {"type": "boolean"}}}},
]
UNDRAFTED = [
    {"temperature": 0.7, "seed": 3},
    {"logprobs": True, "top_logprobs": 2},
    {"extra_body": {"generation_config": {"num_beams": 2}}},
    {"extra_body": {"generation_config": {"prompt_lookup_num_tokens": 2}}},
]


@pytest.mark.parametrize("drafts, more", [*((True, each) for each in SAME), *((False, each) for each in UNDRAFTED)])
def test_drafts_change_no_answer(plain: Any, drafted: Any, drafts: bool, more: dict[str, Any], asked: list[bool]) -> None:
    options = {"model": "eft", "messages": CHAT, "max_tokens": 20, **more}
    answers = [client.chat.completions.create(**options) for *_, client in (plain, drafted)]
    first, second = (answer.to_dict() for answer in answers)
    assert first["choices"] == second["choices"] and first["usage"] == second["usage"]
    own = "prompt_lookup_num_tokens" in str(more)  # its drafts are asked for in another way
    assert asked == [False, drafts] or own


def test_a_stream_is_still_one(plain: Any, drafted: Any) -> None:
    options = {"model": "eft", "prompt": QUESTION.prompt, "max_tokens": 20, "stream": True}
    one, other = ([part.choices[0].text for part in client.completions.create(**options)] for *_, client in (plain, drafted))
    assert "".join(one) == "".join(other)
    assert len(other) > 2  # block by block, not all at the end


def test_what_cannot_be_drafted_for_is_refused() -> None:
    model, tokenizer = family()
    with pytest.raises(ValueError, match="leave out `speculative` or `continuous_batching`"):
        EFTServer(model, tokenizer, port=0, continuous_batching=True, speculative=True)
    model.combination = Combination({"base": 1.0})
    with pytest.raises(ValueError, match="no tuned member to draft"):
        EFTServer(model, tokenizer, port=0, speculative=True)


def test_the_small_combination_may_draft_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """At half the strength it is no member: both are looked at, and the one that pays drafts."""
    model, tokenizer = family(alpha=0.5)
    reports: list[Any] = []
    whole = dispatch.Steps.finish

    def finish(self: Any, rows: Any) -> None:
        reports.append(model.speculation)
        whole(self, rows)

    monkeypatch.setattr(dispatch.Steps, "finish", finish)
    with EFTServer(model, tokenizer, port=0, speculative=True) as server, connect(server) as client:
        client.chat.completions.create(model="eft", messages=CHAT, max_tokens=20)
    assert sorted(reports[0].agreement) == ["small combination", "tuned"]
