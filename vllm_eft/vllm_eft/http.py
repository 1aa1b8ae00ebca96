"""Requests as hf_eft's own server takes them: `alpha`, `beta` or `weights` beside the rest of the body, and one key for every path."""

from __future__ import annotations

import hmac
import json
import os
import typing
from collections.abc import Awaitable, Callable
from typing import Any

from .bodies import misplaced, rewritten

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
# At which requests are sampled that say how and not how warm; set by those who start the server, where requests are greedy by default.
TEMPERATURE = "VLLM_EFT_TEMPERATURE"

_App = Callable[..., Awaitable[None]]


class Parameters:
    r"""
    ASGI middleware of vLLM's server: `--middleware vllm_eft.http.Parameters`.

    Args:
        app (`Callable`): vLLM's application.
    """

    def __init__(self, app: _App) -> None:
        self._app = app
        warm = os.environ.get(TEMPERATURE)
        self._temperature = None if warm is None else float(warm)
        self._known: dict[str, frozenset[str]] = {}

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http" or scope.get("method") != "POST":
            return await self._app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        body, messages = b"", []
        while True:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        try:
            changed = self._changed(scope, path, body)
        except (ValueError, TypeError) as error:
            return await _refuse(send, 400, "BadRequestError", str(error))
        if changed is not None:
            messages = [{"type": "http.request", "body": changed, "more_body": False}]
            headers = [(key, value) for key, value in scope["headers"] if key.lower() != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(changed)).encode())]}

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        return await self._app(scope, again, send)

    def _changed(self, scope: Any, path: str, body: bytes) -> bytes | None:
        if path in PATHS:
            if path not in self._known:
                self._known[path] = parameters_at(scope.get("app"), path)
            return rewritten(body, self._known[path], self._temperature)
        if key := misplaced(body):
            raise ValueError(f"`{key}` is heeded at {', '.join(PATHS)}, not at {path}.")
        return None


class Key:
    r"""
    ASGI middleware of vLLM's server: `--middleware vllm_eft.http.Key`, the last one on the command line. Lets those in who know the key
    in `VLLM_API_KEY`, and everyone to `/health`. vLLM itself asks for it at some paths only, and answers at others (`/invocations`).

    Args:
        app (`Callable`): vLLM's application.
    """

    def __init__(self, app: _App) -> None:
        key = os.environ.get("VLLM_API_KEY")
        self._app, self._expected = app, f"Bearer {key}".encode() if key else None

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if self._expected is None or scope["type"] == "lifespan" or scope["path"] == "/health":
            return await self._app(scope, receive, send)
        if hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._expected):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        return await _refuse(
            send, 401, "authentication_error", "The API key is missing or wrong: send it as `Authorization: Bearer KEY`."
        )


def parameters_at(app: Any, path: str) -> frozenset[str]:
    """The parameters that an application reads at a path, out of its endpoint's body; nothing where that is not to be seen."""
    for route in getattr(app, "routes", ()):
        if getattr(route, "path", None) != path or "POST" not in (getattr(route, "methods", None) or ()):
            continue
        for kind in typing.get_type_hints(route.endpoint).values():
            if fields := getattr(kind, "model_fields", None):
                return frozenset(name for key, field in fields.items() for name in (key, field.alias) if name)
    return frozenset()


async def _refuse(send: Callable[[Any], Awaitable[None]], status: int, kind: str, reason: str) -> None:
    error = {"error": {"message": reason, "type": kind, "param": None, "code": status}}
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(error).encode()})
