"""The web server: which paths there are, and that whatever happens is answered in JSON."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ..files.json_lines import parsed
from .asked import Reader
from .chat import Chat
from .completions import Completions
from .dispatch import Generator
from .endpoint import Endpoint
from .errors import Json, NotFound, Unavailable, error_answer
from .responses import Responses

_Scope = MutableMapping[str, Any]


def build_app(reader: Reader, generator: Generator, name: str, api_key: str | None) -> Any:
    r"""
    The app for one live model.

    Args:
        reader ([`Reader`]): What reads requests.
        generator ([`Generator`]): Who generates answers.
        name (`str`): What clients call the model.
        api_key (`str`, *optional*): What clients must send as a bearer token, except to `/health`.

    Returns:
        An ASGI app.
    """
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "hf-eft"}

    async def models(request: Request) -> Response:
        return Json({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        if request.path_params["model"] != name:
            raise NotFound(
                f"There is no model {request.path_params['model']!r} here: the model of this server is called {name!r}."
            )
        return Json(model)

    async def health(request: Request) -> Response:
        if not generator.is_alive():
            raise Unavailable("The batch has failed: no more requests can be answered. Start the server again.")
        return Json({"status": "ok"})

    routes = [
        Route("/health", health, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", one_model, methods=["GET"]),
        Route("/v1/chat/completions", _posted(Chat(reader, generator, name)), methods=["POST"]),
        Route("/v1/completions", _posted(Completions(reader, generator, name)), methods=["POST"]),
        Route("/v1/responses", _posted(Responses(reader, generator, name)), methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys((HTTPException, Unavailable, NotFound), _answer))
    return app if api_key is None else Guard(app, api_key)


def _posted(endpoint: Endpoint[Any]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(_object(await request.body()))
        except ClientDisconnect:
            raise
        except Exception as error:  # foreseen or not: clients read JSON
            return error_answer(error)

    return answer


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = parsed(body.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"The body of the request is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError("The body of the request must be a JSON object.")
    return given


async def _answer(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        known = {404: f"There is nothing at {request.url.path}.", 405: f"{request.url.path} does not take {request.method}."}
        error = HTTPException(error.status_code, known.get(error.status_code, error.detail), headers=error.headers)
    return error_answer(error)


class Guard:
    r"""
    Lets those in who know the key, and everyone to `/health`.

    Args:
        app (`Callable`): The ASGI app behind it.
        api_key (`str`): The key.
    """

    def __init__(self, app: Any, api_key: str) -> None:
        self._app, self._expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                refusal = HTTPException(401, "The API key is missing or wrong: send it as `Authorization: Bearer KEY`.")
                await error_answer(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)
