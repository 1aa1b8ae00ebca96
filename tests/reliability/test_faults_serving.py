"""Faults in a server, both ways of serving: the request is told, the next one is answered as ever, nothing is left."""

from __future__ import annotations

import functools
import gc
import http.client
import json
import threading
import weakref
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")

import torch
from faults import failing, fingerprint
from paged import config, greedy, three
from paged import prompts as paged_prompts
from served import BATCHED, BOTH, family, generated
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

from hf_eft.decoding.continuous.paged import MemberPages, PagedMembers
from hf_eft.serving import EFTServer, errors

PROMPT = "Question: Tell me all about it.\nAnswer:"


class Client:
    """Asks a server over HTTP, and may go away."""

    def __init__(self, server: EFTServer) -> None:
        self.where = server.url.removeprefix("http://")

    def open(self, **body: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse | None]:
        connection = http.client.HTTPConnection(self.where, timeout=60)
        content = {"model": "eft", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **body}
        connection.request("POST", "/v1/completions", json.dumps(content), {"Content-Type": "application/json"})
        return connection, None

    def ask(self, **body: Any) -> tuple[int, Any]:
        connection, _ = self.open(**body)
        answer = connection.getresponse()
        status, told = answer.status, answer.read().decode()
        connection.close()
        return status, told

    def text(self) -> str:
        status, told = self.ask()
        assert status == 200, told
        return str(json.loads(told)["choices"][0]["text"])

    def health(self) -> int:
        connection = http.client.HTTPConnection(self.where, timeout=60)
        connection.request("GET", "/health")
        status = connection.getresponse().status
        connection.close()
        return status


@BOTH
def test_a_server_goes_on_after_memory_that_ran_out(options: dict[str, Any]) -> None:
    model, tokenizer = family()
    expected, before = generated(model, tokenizer, PROMPT, max_new_tokens=8), fingerprint(model)
    with EFTServer(model, tokenizer, port=0, log_level="critical", **options) as server:
        client = Client(server)
        assert client.text() == expected
        where = (MemberPages if options else DynamicLayer, "update")
        for owner, name, at in ((LlamaForCausalLM, "forward", 2), (LlamaForCausalLM, "forward", 8), (*where, 13)):
            for stream in (False, True):
                with failing(owner, name, at, torch.OutOfMemoryError("simulated")):
                    status, told = client.ask(stream=stream)
                assert (status in (500, 503) or '"error"' in told) and "simulated" in told and "[DONE]" not in told[:-20]
                assert client.health() == 200
                assert client.text() == expected
    assert fingerprint(model) == before


@BOTH
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_server_goes_on_after_a_client_that_went(options: dict[str, Any], stream: bool) -> None:
    model, tokenizer = family()
    expected, before = generated(model, tokenizer, PROMPT, max_new_tokens=8), fingerprint(model)
    reached, gone = threading.Event(), threading.Event()
    owner = PagedMembers if options else type(model)
    name = "__call__" if options else "forward"
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def waits(*args: Any, **kwargs: Any) -> Any:
        reached.set()
        assert gone.wait(60)
        return plain(*args, **kwargs)

    with EFTServer(model, tokenizer, port=0, **options) as server:
        client = Client(server)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(owner, name, waits)
            connection, _ = client.open(stream=stream, max_tokens=60)
            assert reached.wait(60)
            connection.close()  # in the middle of the first token
            gone.set()
            assert client.text() == expected
    assert fingerprint(model) == before


def test_half_an_answer_is_not_told_as_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a thread, and is no `Exception`, ends an answer as any error does."""
    model, tokenizer = family()
    expected = generated(model, tokenizer, PROMPT, max_new_tokens=8)
    with EFTServer(model, tokenizer, port=0, log_level="critical") as server:
        client = Client(server)
        for stream in (False, True):
            with failing(type(model), "forward", 3, SystemExit(1)):
                status, told = client.ask(stream=stream)
            assert "ended by SystemExit" in told and (stream or status == 500)
        assert client.text() == expected


def test_what_a_request_held_is_let_go_when_it_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody collects garbage: the next request needs the memory."""
    model, tokenizer = family()
    held: list[weakref.ref[Any]] = []

    class Held:
        """States."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        states = Held()
        held.append(weakref.ref(states))
        raise torch.OutOfMemoryError("simulated")

    with EFTServer(model, tokenizer, port=0, log_level="critical") as server:
        client = Client(server)
        client.text()
        gc.collect()
        gc.disable()
        try:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(model, "generate", fails)
                patched.setattr(errors.logger, "disabled", True)  # pytest keeps what is logged, errors with it
                assert client.ask()[0] == 500 and client.ask(stream=True)[0] == 500
            client.text()
            assert [each() for each in held] == [None, None]
        finally:
            gc.enable()


def test_a_batch_that_fails_again_and_again_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = family()
    expected = generated(model, tokenizer, PROMPT, max_new_tokens=8)
    with EFTServer(model, tokenizer, port=0, log_level="critical", **BATCHED) as server:
        client = Client(server)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(PagedMembers, "__call__", lambda *args, **kwargs: 1 / 0)
            assert [client.ask()[0] for _ in range(3)] == [503] * 3
            assert client.health() == 503
        assert client.text() == expected and client.health() == 200
        with failing(LlamaForCausalLM, "forward", 2, torch.OutOfMemoryError("simulated")):
            assert client.ask()[0] == 503
        assert client.health() == 200  # there was an answer in between: the next request begins again
    assert not server._generator._manager.is_running()


# `generate_batch` -----------------------------------------------------------------------------------------------------------


def test_a_batch_after_one_that_failed() -> None:
    model, inputs = three(), paged_prompts(5, 9, 3)

    def run(**more: Any) -> list[list[int]]:
        return [out.generated_tokens for out in model.generate_batch(inputs, greedy(5), config(), **more).values()]

    expected, before = run(), fingerprint(model)
    error = torch.OutOfMemoryError("simulated")
    for owner, name, at in ((LlamaForCausalLM, "forward", 8), (MemberPages, "update", 5)):
        with failing(owner, name, at, error), pytest.raises(type(error), match="simulated"):
            run()
        assert fingerprint(model) == before
        assert run() == expected


def test_a_batch_after_one_that_was_interrupted() -> None:
    model, inputs = three(), paged_prompts(5, 9, 3)

    def run() -> list[list[int]]:
        return [out.generated_tokens for out in model.generate_batch(inputs, greedy(5), config()).values()]

    expected, before = run(), fingerprint(model)
    for name in ("get_result", "add_request", "start"):
        with failing(ContinuousBatchingManager, name, 1, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            run()
        assert fingerprint(model) == before, name
        assert run() == expected
