"""Every request that reaches a batching server is answered, while a batch fails too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")

import openai
from paged import then
from transformers import ContinuousBatchingConfig

from hf_eft import EFTForCausalLM, tiny
from hf_eft.decoding.continuous.answers import Answers
from hf_eft.decoding.continuous.paged import PagedMembers
from hf_eft.serving import EFTServer

PROMPT = "Question: Tell me all about it.\nAnswer: Of course! "
SOON = 30  # seconds, after which a client gives up
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@contextmanager
def served() -> Iterator[tuple[EFTServer, Any, openai.OpenAI]]:
    """A batching server, with its manager and a client that waits for a while. It ends with the test, whatever the test finds."""
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    batching = ContinuousBatchingConfig(page_size=16, num_blocks=128, max_batch_tokens=64)
    server = EFTServer(model, tokenizer, port=0, continuous_batching=True, continuous_batching_config=batching)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=SOON)
    server.start()
    try:
        with client:
            yield server, server._generator._manager, client
    finally:
        server._server.force_exit = True  # who was not answered is not waited for
        server.stop()


def complete(client: openai.OpenAI, stream: bool = False, **options: Any) -> str:
    answer = client.completions.create(model="eft", prompt=PROMPT, **{"max_tokens": 12, "stream": stream, **options})
    return "".join(part.choices[0].text for part in answer) if stream else answer.choices[0].text


@STREAMS
def test_a_request_that_comes_while_the_batch_fails_is_answered(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise FloatingPointError("The member 'tuned' returned NaN")

    failed, answered = threading.Event(), threading.Event()
    with served() as (_, manager, client):
        # The thread has failed all requests that it knows of, and not yet said that it will take no more.
        clear = then(manager._fail_all_remaining_requests, lambda: (failed.set(), answered.wait(SOON)))
        monkeypatch.setattr(manager, "_fail_all_remaining_requests", clear)
        monkeypatch.setattr(PagedMembers, "__call__", fail)
        with pytest.raises(openai.InternalServerError, match="503"):
            complete(client)
        assert failed.wait(SOON)
        try:
            with pytest.raises(openai.InternalServerError, match="503"):
                complete(client, stream)
        finally:
            answered.set()


@STREAMS
def test_a_request_that_was_let_in_while_the_batch_failed_is_answered(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise FloatingPointError("The member 'tuned' returned NaN")

    failed, put = threading.Event(), threading.Event()
    with served() as (_, manager, client):
        clear = then(manager._fail_all_remaining_requests, lambda: (failed.set(), put.wait(SOON)))
        monkeypatch.setattr(manager, "_fail_all_remaining_requests", clear)
        monkeypatch.setattr(PagedMembers, "__call__", fail)
        with pytest.raises(openai.InternalServerError, match="503"):
            complete(client)
        assert failed.wait(SOON)
        monkeypatch.setattr(manager.background_thread_status, "can_accept_new_requests", lambda: None)
        monkeypatch.setattr(manager.input_queue, "put", then(manager.input_queue.put, put.set))
        with pytest.raises(openai.APIError) as told:
            complete(client, stream)
        assert not isinstance(told.value, openai.APIConnectionError)  # it has not just waited in vain


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_whose_answer_is_there_before_anybody_listens_is_whole(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    with served() as (_, manager, client):
        expected, over = complete(client), threading.Event()
        ends = then(manager.answers.deliver_batch, lambda: over.set() if not manager.answers._open else None)
        monkeypatch.setattr(manager.answers, "deliver_batch", ends)
        monkeypatch.setattr(manager, "add_request", then(manager.add_request, lambda: over.wait(SOON)))
        if fails:
            monkeypatch.setattr(PagedMembers, "__call__", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(openai.APIError) as told:
                complete(client, stream=True)
            assert not isinstance(told.value, openai.APIConnectionError)
        else:
            assert complete(client, stream=True) == expected


def test_requests_that_are_open_when_the_server_is_stopped_are_answered() -> None:
    with served() as (server, manager, client):
        answers: list[str] = []
        asked = threading.Event()
        deliver = manager.answers.open
        manager.answers.open = then(deliver, asked.set)
        waiting = threading.Thread(target=lambda: answers.append(complete(client, max_tokens=60)), daemon=True)
        waiting.start()
        assert asked.wait(SOON)
        server.stop()
        waiting.join(SOON)
        assert len(answers) == 1 and not manager.is_running()


def test_answers_are_kept_for_who_asked() -> None:
    """No answer is left in the common queue of a server, where nobody looks."""
    with served() as (_, manager, client):
        stream = client.completions.create(model="eft", prompt=PROMPT, max_tokens=200, stream=True)
        next(iter(stream))
        stream.close()
        assert complete(client, stream=True) == complete(client)
        assert isinstance(manager.output_router, Answers)
        assert manager.output_router.output_queue.empty()
