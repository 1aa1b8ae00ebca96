"""What is sent when something is wrong: JSON in OpenAI's form, whatever it was."""

from __future__ import annotations

import json
import logging
from typing import Any

from jinja2 import TemplateError  # what a chat template refuses
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

logger = logging.getLogger("hf_eft.serving")

# What a client can cause.
_CLIENTS = (ValueError, TemplateError, NotImplementedError)
_KINDS = {401: "authentication_error", 404: "not_found_error"}
_CODES = {404: "not_found", 503: "unavailable"}


class Unavailable(RuntimeError):
    """The batch has failed, and what was asked for cannot be answered."""


class NotFound(LookupError):
    """There is no such model."""


class Json(JSONResponse):
    """JSON in ASCII: half of a surrogate pair, which a client can send and an error then quotes, has no bytes of its own."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def status_of(error: Exception) -> int:
    """The status that an error is answered with."""
    if isinstance(error, HTTPException):
        return error.status_code
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, Unavailable):
        return 503
    return 400 if isinstance(error, _CLIENTS) else 500


def error_body(error: Exception) -> dict[str, Any]:
    """An error as clients of OpenAI read it. One that nobody foresaw is logged, with its traceback."""
    status = status_of(error)
    if status == 500:
        logger.error("A request failed.", exc_info=error)
    message = error.detail if isinstance(error, HTTPException) else str(error) or type(error).__name__
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": _CODES.get(status)}}


def error_answer(error: Exception) -> Json:
    """The answer to a request that failed."""
    headers = error.headers if isinstance(error, HTTPException) else None
    return Json(error_body(error), status_code=status_of(error), headers=headers)
