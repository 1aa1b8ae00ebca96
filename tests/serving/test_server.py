"""The life of a server: how it starts, who may ask, clients that leave, members that fail, and its end."""

from __future__ import annotations

import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from served import BATCHED, LONG, complete, connect, family, fixtures, generated, post
from transformers.generation.continuous_batching.scheduler import Scheduler

from hf_eft.decoding.continuous.paged import PagedMembers
from hf_eft.serving import EFTServer, serve

one_by_one, batched, served = fixtures()


# From start to end ----------------------------------------------------------------------------------------------------


def test_the_one_model_is_listed_and_no_other_can_be_loaded(served: Any) -> None:
    _, _, client = served
    assert [model.id for model in client.models.list()] == ["eft"]
    root = str(client.base_url).removesuffix("v1/")
    assert urllib.request.urlopen(f"{root}health").read() == b'{"status":"ok"}'
    for path in ("load_model", "reset", "v1/systemone", "v1/audio/transcriptions"):
        with pytest.raises(urllib.error.HTTPError, match="404") as raised:
            post(root + path, b'{"model": "another"}')
        raised.value.close()


def test_a_key_is_asked_for() -> None:
    model, tokenizer = family()
    with EFTServer(model, tokenizer, port=0, api_key="sésame", model_name="mine") as server:
        assert urllib.request.urlopen(f"{server.url}/health").read() == b'{"status":"ok"}'
        with connect(server, api_key="wrong") as client, pytest.raises(openai.AuthenticationError, match="API key"):
            client.models.list()
        headers = {"Authorization": "Bearer sésame".encode().decode("latin-1")}
        assert b"mine" in urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/models", headers=headers)).read()


def test_an_open_address_without_a_key_is_warned_of() -> None:
    model, tokenizer = family()
    with pytest.warns(UserWarning, match="negative weights"):
        server = EFTServer(model, tokenizer, host="0.0.0.0", port=0)
    server.stop()


def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_eft.serving.is_serve_available", lambda: False)
    with pytest.raises(ImportError, match=r"hf-eft\[serve\]"):
        EFTServer(*family(), port=0)


def test_a_taken_port_is_told() -> None:
    model, tokenizer = family()
    with EFTServer(model, tokenizer, port=0) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="Choose another"):
            EFTServer(model, tokenizer, port=port)
        with pytest.raises(RuntimeError, match="started before"):
            server.start()


def test_serve_blocks_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import uvicorn

    model, tokenizer = family()

    def interrupted(self: Any, sockets: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    before = set(threading.enumerate())
    serve(model, tokenizer, port=0)
    assert "Serving 'eft' at http://127.0.0.1:" in capsys.readouterr().out
    assert set(threading.enumerate()) <= before  # those of other tests may end


# What goes wrong on the way -------------------------------------------------------------------------------------------


def test_errors_while_generating_are_answered(one_by_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = one_by_one

    def fail(**inputs: Any) -> None:
        raise ValueError('this "cannot" be done')

    with monkeypatch.context() as patched:
        patched.setattr(model, "generate", fail)
        with pytest.raises(openai.BadRequestError, match='this "cannot" be done'):
            complete(client, LONG)
        with pytest.raises(openai.BadRequestError, match='this "cannot" be done'):
            list(client.completions.create(model="eft", prompt=LONG, max_tokens=12, stream=True))
    assert complete(client, LONG) == generated(model, tokenizer, LONG)


def test_a_client_that_goes_away_does_not_stop_the_others(one_by_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = one_by_one
    expected = generated(model, tokenizer, LONG)
    gone, given_up = threading.Event(), threading.Event()
    forward, generate = model.forward, model.generate

    def wait_at_the_second_token(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] == 1:
            assert gone.wait(60)
        return forward(*args, **kwargs)

    def watched(**inputs: Any) -> Any:
        sequences = generate(**inputs)
        if sequences.shape[1] < inputs["input_ids"].shape[1] + inputs["generation_config"].max_new_tokens - 60:
            given_up.set()
        return sequences

    monkeypatch.setattr(model, "forward", wait_at_the_second_token)
    monkeypatch.setattr(model, "generate", watched)
    stream = client.completions.create(
        model="eft", prompt=LONG, max_tokens=90, stream=True, extra_body={"generation_config": '{"eos_token_id": [-1]}'}
    )
    next(iter(stream))
    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(complete, client, LONG) for _ in range(4)]
        stream.close()
        gone.set()
        assert [other.result() for other in others] == [expected] * 4
    assert given_up.wait(60)


def test_a_client_that_leaves_the_batch_does_not_stop_the_others(batched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = batched
    expected = generated(model, tokenizer, LONG)
    cancelled = threading.Event()
    clear = Scheduler.clear_cancelled_requests

    def watched(self: Any) -> Any:
        states = clear(self)
        if states:
            cancelled.set()
        return states

    monkeypatch.setattr(Scheduler, "clear_cancelled_requests", watched)
    with ThreadPoolExecutor(4) as threads:
        endless = {"generation_config": '{"eos_token_id": [-1]}'}
        stream = client.completions.create(model="eft", prompt=LONG, max_tokens=110, stream=True, extra_body=endless)
        next(iter(stream))
        others = [threads.submit(complete, client, LONG) for _ in range(4)]
        stream.close()
        assert [other.result() for other in others] == [expected] * 4
    assert cancelled.wait(60)


def test_members_that_fail_are_told_one_by_one(one_by_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = one_by_one

    def fail(*args: Any, **kwargs: Any) -> None:
        raise FloatingPointError("The member 'tuned' returned NaN")

    with monkeypatch.context() as patched:
        patched.setattr(model._members, "step", fail)
        with pytest.raises(openai.InternalServerError, match="'tuned' returned NaN"):
            complete(client, LONG)
    assert complete(client, LONG) == generated(model, tokenizer, LONG)


def test_members_that_fail_end_the_batch_and_the_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise FloatingPointError("The member 'tuned' returned NaN")

    monkeypatch.setattr(PagedMembers, "__call__", fail)
    with EFTServer(*family(), port=0, **BATCHED) as server, connect(server) as client:
        with pytest.raises(openai.InternalServerError, match="503"):
            complete(client, LONG)
        with pytest.raises(openai.InternalServerError, match="503"):
            complete(client, LONG)
        with pytest.raises(urllib.error.HTTPError, match="503") as raised:
            urllib.request.urlopen(f"{server.url}/health")
        raised.value.close()
