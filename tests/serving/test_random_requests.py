"""Random requests and lines, a few with a fixed seed; and, one by one, what such requests found."""

from __future__ import annotations

import collections
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from random_bodies import CHATS, COMPLETIONS, KINDS, OPTIONS, RESPONSES, Request, fields
from random_requests import answer_lines, ask_requests
from random_server import Served, all_ways

from hf_eft.programs.options import option_names
from hf_eft.serving.dispatch import OneByOne, Told

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns of combinations of options that say nothing
CHAT = [{"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def served() -> Iterator[list[Served]]:
    with all_ways() as made:
        yield made


def ask(served: Served, path: str, **body: Any) -> tuple[int, Any]:
    """The status and the content of an answer that is well-formed."""
    answer = served.ask(Request(path, json.dumps(body).encode(), body=body))
    return answer.status_code, answer.json()


def test_every_field_and_every_option_is_asked_for() -> None:
    assert set(OPTIONS) == option_names()
    for path, kind in KINDS.items():
        assert set(fields(path)) == set(kind.model_fields)


def test_random_requests_are_answered(served: list[Served]) -> None:
    statuses: collections.Counter[int] = collections.Counter()
    ask_requests(served, 0, 100, lambda status: statuses.update([status]))
    assert statuses[200] > 15 and statuses[400] > 15 and max(statuses) < 500


def test_random_lines_are_answered(tmp_path: Path) -> None:
    answered: list[int] = []
    answer_lines(tmp_path, 0, 15, answered.append)
    assert sum(answered) > 15


# What they found --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHATS, COMPLETIONS])
def test_a_stream_that_is_read_late_ends_once_and_last(
    served: list[Served], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OneByOne.run

    async def late(self: OneByOne, job: Any) -> AsyncGenerator[Told, None]:
        for told in [told async for told in run(self, job)]:
            yield told

    monkeypatch.setattr(OneByOne, "run", late)
    asked = {"messages": CHAT} if path == CHATS else {"prompt": "Who?"}
    body = {**asked, "max_tokens": 5, "stream": True}
    assert served[0].check(Request(path, json.dumps(body).encode(), body=body)) == 200


@pytest.mark.parametrize("name", ["tokenizer", "messages", "conversation", "chat_template", "tokenizer_kwargs"])
def test_what_is_not_the_templates_is_refused(served: list[Served], name: str) -> None:
    status, answer = ask(served[0], CHATS, messages=CHAT, chat_template_kwargs={name: "a"})
    assert status == 400 and f"{name!r} is not" in answer["error"]["message"]


@pytest.mark.parametrize("way", range(2), ids=["one_by_one", "batched"])
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0}], ids=["greedy", "drawn"])
def test_a_request_that_rules_every_token_out_is_refused_alone(served: list[Served], way: int, drawn: dict[str, Any]) -> None:
    everything = {"suppress_tokens": list(range(len(served[way].tokenizer)))}
    status, answer = ask(served[way], COMPLETIONS, prompt="Who?", max_tokens=3, generation_config=everything, **drawn)
    assert status == 400 and "No token is left" in answer["error"]["message"]
    assert ask(served[way], COMPLETIONS, prompt="Who?", max_tokens=3)[0] == 200


@pytest.mark.parametrize("way", range(2), ids=["one_by_one", "batched"])
def test_numbers_that_overflow_are_refused_alone(served: list[Served], way: int) -> None:
    steep = {"exponential_decay_length_penalty": [0, 1e4], "min_new_tokens": 60}
    status, answer = ask(served[way], COMPLETIONS, prompt="Who?", max_tokens=80, temperature=1.0, generation_config=steep)
    assert status == 400 and (
        "larger than numbers are" in answer["error"]["message"] or "out of range" in answer["error"]["message"]
    )
    assert ask(served[way], COMPLETIONS, prompt="Who?", max_tokens=3)[0] == 200


def test_a_response_has_tools_in_its_own_form(served: list[Served]) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    _, answer = ask(served[2], RESPONSES, input="Who?", max_output_tokens=2, tools=[tool], tool_choice="auto")
    assert answer["tools"] == [
        {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}
    ]
    body = {
        "input": "Who?",
        "max_output_tokens": 60,
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }
    _, answer = ask(served[2], RESPONSES, **body)
    assert answer["tool_choice"] == {"type": "function", "name": "f"}
    assert served[2].check(Request(RESPONSES, json.dumps(body).encode(), body=body)) == 200


def test_penalties_are_told_of_drafts(served: list[Served]) -> None:
    penalties = {"presence_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": {"7": 2.0}}
    drafts = {"generation_config": {"prompt_lookup_num_tokens": 3}}
    asked = {"prompt": "a b a b a b a b", "max_tokens": 12, **penalties}
    (status, plain), (drafted, looked_up) = ask(served[0], COMPLETIONS, **asked), ask(served[0], COMPLETIONS, **asked, **drafts)
    assert (status, drafted) == (200, 200)
    assert looked_up["choices"] == plain["choices"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_a_cache_that_is_offloaded_needs_a_gpu(served: list[Served], kind: str) -> None:
    asked = {"prompt": "Who?", "max_tokens": 3, "generation_config": {"cache_implementation": kind}}
    status, answer = ask(served[0], COMPLETIONS, **asked)
    assert status == 400 and "no GPU here" in answer["error"]["message"]


def test_a_static_cache_has_room_for_what_there_is(served: list[Served]) -> None:
    static = {"cache_implementation": "static", "max_cache_len": 97}
    status, answer = ask(served[0], COMPLETIONS, prompt="Who?", max_tokens=3, generation_config=static)
    assert status == 400 and "`max_cache_len` is 97, and there are 96 positions of the member" in answer["error"]["message"]
