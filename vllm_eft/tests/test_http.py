"""Bodies of our own server's requests, as vLLM takes them."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from vllm_eft.bodies import rewritten
from vllm_eft.engine import Served
from vllm_eft.http import Key, Parameters, parameters_at
from vllm_eft.recipe import Recipe

from vllm_eft import engine

ONE = Recipe(("base", "tuned", "reference"), {}, {"base": 1.0, "tuned": 1.0, "reference": -1.0})
SEVERAL = Recipe(("base", "a", "b", "reference"), {}, {"base": 1.0, "a": 1.0, "reference": -1.0})


@pytest.fixture(autouse=True)
def _served(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, ONE)


def serve(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    monkeypatch.setattr(engine, "_SERVED", [Served(recipe, v2=False, fixed=False)])


KNOWN = {"prompt", "temperature", "top_p", "top_k", "max_tokens", "n", "stop", "vllm_xargs"}


@pytest.mark.parametrize(
    ("recipe", "body", "extra"),
    [
        (ONE, {"alpha": 0.5}, {"alpha": 0.5}),
        (ONE, {"alpha": 0.5, "vllm_xargs": {"other": 1}}, {"other": 1, "alpha": 0.5}),
        (SEVERAL, {"weights": {"b": 0.3}}, {"weights": [0.0, 0.3]}),
        (SEVERAL, {"coefficients": {"base": 1}}, {"coefficients": [1, 0.0, 0.0, 0.0]}),
    ],
)
def test_our_parameters_stand_where_vllm_looks_for_them(
    recipe: Recipe, body: dict[str, Any], extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, recipe)
    found = json.loads(rewritten(json.dumps({"prompt": "x", **body}).encode()) or b"")
    assert found == {"prompt": "x", "vllm_xargs": extra}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"user": "me", "n": 2}, {"n": 2}),
        ({"top_p": 0.9}, {"top_p": 0.9, "temperature": 0.6}),  # says how tokens are drawn
        ({"top_p": 0.9, "temperature": 0}, {"top_p": 0.9, "temperature": 0}),
        ({"top_p": 1}, {"top_p": 1}),
        ({"generation_config": {"top_k": 5, "max_new_tokens": 3}}, {"top_k": 5, "max_tokens": 3, "temperature": 0.6}),
        ({"generation_config": '{"stop_strings": ["a"], "do_sample": false}'}, {"stop": ["a"], "temperature": 0}),
        ({"generation_config": {"do_sample": True, "top_k": None}}, {"temperature": 0.6}),
    ],
)
def test_options_mean_what_they_mean_to_our_own_server(body: dict[str, Any], found: dict[str, Any]) -> None:
    given = json.dumps({"prompt": "x", **body}).encode()
    assert json.loads(rewritten(given, KNOWN, 0.6) or given) == {"prompt": "x", **found}


@pytest.mark.parametrize(
    ("choice", "said", "strict"),
    [("required", {}, True), ({"type": "function"}, {}, True), ("required", {"strict": False}, False), ("auto", {}, None)],
)
def test_a_call_that_must_be_made_keeps_to_its_schema(choice: Any, said: dict[str, Any], strict: bool | None) -> None:
    for tool in ({"type": "function", "function": {"name": "f", **said}}, {"type": "function", "name": "f", **said}):
        given = json.dumps({"tools": [tool], "tool_choice": choice}).encode()
        [found] = json.loads(rewritten(given) or given)["tools"]
        assert found.get("function", found).get("strict") is strict


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
        ({"weights": {"base": 1}}, "numbers for tuned, by name or in that order; it names 'base'"),
        ({"alpha": True}, "`alpha` must be a finite number"),
        ({"alhpa": 1.0}, "`alhpa` is no parameter here; did you mean `alpha`"),
        ({"frequency": 1.0}, "`frequency` is no parameter here"),
        ({"generation_config": {"num_beams": 4}}, "`num_beams` in `generation_config` is not heeded"),
        ({"generation_config": {"min_new_tokens": 4}}, "`min_new_tokens` in `generation_config` is not heeded"),
        ({"generation_config": {"max_new_tokens": 4}, "max_tokens": 5}, "Give one of them"),
        ({"generation_config": {"do_sample": False, "top_k": 5}}, "`do_sample` is false, but"),
        ({"generation_config": [1]}, "must be a JSON object"),
    ],
)
def test_what_vllm_would_leave_out_is_refused(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rewritten(json.dumps(body).encode(), {*KNOWN, "use_beam_search"})


def asked(app: Any, path: str, body: bytes, headers: Any = (), kind: str = "http") -> list[Any]:
    """What is sent for a request."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": kind, "method": "POST", "path": path, "headers": list(headers)}, receive, send))
    return sent


async def _through(scope: Any, receive: Any, send: Any) -> None:
    await send("through")


@pytest.mark.parametrize("path", ["/invocations", "/v1/messages", "/inference/v1/generate"])
def test_where_a_strength_would_be_left_out_it_is_refused(path: str) -> None:
    [head, body] = asked(Parameters(_through), path, b'{"alpha": 1}')
    assert head["status"] == 400
    assert f"not at {path}" in json.loads(body["body"])["error"]["message"]
    assert asked(Parameters(_through), path, b'{"alpha": null}') == ["through"]


def test_parameters_are_those_of_the_endpoints_body() -> None:
    class Body:
        model_fields: ClassVar = {"prompt": SimpleNamespace(alias=None), "schema_": SimpleNamespace(alias="schema")}

    async def endpoint(request: Body, raw: int) -> None: ...

    endpoint.__annotations__ = {"request": Body, "raw": int}
    app = SimpleNamespace(routes=[SimpleNamespace(path="/x", methods={"POST"}, endpoint=endpoint), SimpleNamespace(path="/y")])
    assert parameters_at(app, "/x") == {"prompt", "schema_", "schema"}
    assert parameters_at(app, "/y") == parameters_at(None, "/x") == frozenset()


@pytest.mark.parametrize("path", ["/v1/models", "/invocations", "/metrics", "/tokenize"])
def test_the_key_is_asked_for_everywhere_but_at_health(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    app = Key(_through)
    for headers in ([], [(b"authorization", b"Bearer other")], [(b"authorization", b"secret")]):
        [head, body] = asked(app, path, b"", headers)
        assert head["status"] == 401
        assert "Bearer KEY" in json.loads(body["body"])["error"]["message"]
    assert asked(app, path, b"", [(b"authorization", b"Bearer secret")]) == ["through"]
    assert asked(app, "/health", b"") == ["through"]
    assert asked(app, path, b"", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    monkeypatch.delenv("VLLM_API_KEY")
    assert asked(Key(_through), path, b"") == ["through"]


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
