"""Requests as hf_eft's own server takes them: `alpha`, `beta` or `weights` beside the rest of the body, not within `vllm_xargs`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .engine import served_recipes

_OURS = ("alpha", "beta", "weights", "coefficients")
_BEAMS = "use_beam_search"
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


class Parameters:
    r"""
    ASGI middleware of vLLM's server: `--middleware vllm_eft.http.Parameters`.

    Args:
        app (`Callable`): vLLM's application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http" or scope.get("method") != "POST" or scope.get("path") not in _PATHS:
            return await self._app(scope, receive, send)
        body, messages = b"", []
        while True:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        try:
            changed = rewritten(body)
        except ValueError as error:
            return await _refuse(send, str(error))
        if changed is not None:
            messages = [{"type": "http.request", "body": changed, "more_body": False}]
            headers = [(key, value) for key, value in scope["headers"] if key.lower() != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(changed)).encode())]}

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        return await self._app(scope, again, send)


def rewritten(body: bytes) -> bytes | None:
    r"""
    A body with our parameters where vLLM looks for them; nothing if it has none of them.

    Raises:
        `ValueError`: If vLLM would leave them out, or they are said twice.
    """
    try:
        asked = json.loads(body)
    except ValueError:
        return None  # vLLM says what is wrong
    if not isinstance(asked, dict):
        return None
    ours = {key: asked.pop(key) for key in _OURS if key in asked}
    extra = asked.get("vllm_xargs") or {}
    told = [key for key in _OURS if key in ours or (isinstance(extra, Mapping) and extra.get(key) is not None)]
    if told and asked.get(_BEAMS):
        raise ValueError(f"`{_BEAMS}` makes requests of its own, which have no `{told[0]}`: leave out one of them.")
    ours = {key: value for key, value in ours.items() if value is not None}
    if not ours:
        return json.dumps(asked).encode() if any(key in json.loads(body) for key in _OURS) else None
    if not isinstance(extra, Mapping) or ours.keys() & extra.keys():
        raise ValueError(f"{', '.join(map(repr, ours))} is said twice, in `vllm_xargs` as well. Say it once.")
    asked["vllm_xargs"] = {**extra, **{key: _listed(key, value) for key, value in ours.items()}}
    return json.dumps(asked).encode()


def _listed(key: str, value: Any) -> Any:
    """Weights by name as numbers in the members' order, which is what vLLM lets through."""
    recipes = served_recipes()
    if not isinstance(value, Mapping) or not recipes:
        return value
    recipe = recipes[-1]
    names = recipe.names if key == "coefficients" else recipe.tuned
    if unknown := [name for name in value if name not in names]:
        raise ValueError(f"`{key}` names {', '.join(map(repr, unknown))}, but there are {', '.join(names) or 'none'}.")
    return [value.get(name, 0.0) for name in names]


async def _refuse(send: Callable[[Any], Awaitable[None]], reason: str) -> None:
    error = {"error": {"message": reason, "type": "BadRequestError", "param": None, "code": 400}}
    await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(error).encode()})
