"""Bodies of our own server's requests, as vLLM takes them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from vllm_eft.engine import Served
from vllm_eft.http import Parameters, rewritten
from vllm_eft.recipe import Recipe

from vllm_eft import engine

SEVERAL = Recipe(("base", "a", "b", "reference"), {}, {"base": 1.0, "a": 1.0, "reference": -1.0})


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_SERVED", [Served(SEVERAL, v2=False, fixed=False)])


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        ({"alpha": 0.5}, {"alpha": 0.5}),
        ({"weights": {"b": 0.3}}, {"weights": [0.0, 0.3]}),
        ({"coefficients": {"base": 1}}, {"coefficients": [1, 0.0, 0.0, 0.0]}),
        ({"alpha": 0.5, "vllm_xargs": {"other": 1}}, {"other": 1, "alpha": 0.5}),
    ],
)
def test_our_parameters_stand_where_vllm_looks_for_them(body: dict[str, Any], extra: dict[str, Any]) -> None:
    found = json.loads(rewritten(json.dumps({"prompt": "x", **body}).encode()) or b"")
    assert found == {"prompt": "x", "vllm_xargs": extra}


def test_null_is_absent_and_other_bodies_are_left_alone() -> None:
    assert json.loads(rewritten(b'{"prompt": "x", "alpha": null}') or b"") == {"prompt": "x"}
    for body in (b'{"prompt": "x"}', b"[1]", b"{", b'{"vllm_xargs": {"alpha": 1}}'):
        assert rewritten(body) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"alpha": 1, "vllm_xargs": {"alpha": 1}}, "said twice"),
        ({"alpha": 1, "use_beam_search": True}, "`use_beam_search` makes requests of its own"),
        ({"vllm_xargs": {"alpha": 1}, "use_beam_search": True}, "`use_beam_search` makes requests of its own"),
        ({"weights": {"base": 1}}, "names 'base', but there are a, b"),
    ],
)
def test_what_vllm_would_leave_out_is_refused(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rewritten(json.dumps(body).encode())


def test_the_middleware_reads_a_body_in_parts_and_answers_what_it_refuses() -> None:
    seen: list[Any] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((dict(scope["headers"])[b"content-length"], (await receive())["body"]))

    async def call(*parts: bytes) -> None:
        waiting = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]

        async def receive() -> Any:
            return waiting.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"Content-Length", b"1")]}
        await Parameters(app)(scope, receive, send)

    asyncio.run(call(b'{"alpha":', b" 0.5}"))
    [(length, body)] = seen
    assert json.loads(body) == {"vllm_xargs": {"alpha": 0.5}}
    assert int(length) == len(body)
    asyncio.run(call(b'{"alpha": 1, "use_beam_search": true}'))
    assert sent[0]["status"] == 400
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("served", "extra", "reason"),
    [
        ([], {"alpha": 1.0}, "knows no combination"),
        ([Served(SEVERAL, v2=False, fixed=True)], {"weights": [1, 0]}, "one strength to all"),
        ([Served(SEVERAL, v2=False, fixed=False)], {"weights": [[0, 1], 0]}, "needs the V2 model runner"),
    ],
)
def test_requests_are_checked_where_they_arrive(
    served: list[Served], extra: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_SERVED", served)
    with pytest.raises(ValueError, match=reason):
        engine.check_request(extra)
    if served:
        engine.check_request(None)
