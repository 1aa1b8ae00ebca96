"""The endpoints of the OpenAI API: transformers' own handlers, for one live model, with coefficients for each request."""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from jinja2 import TemplateError  # what a chat template refuses
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server

from ..shorthands import recipe
from .dispatch import Asked, Generation

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM

_OWN = ("alpha", "beta", "weights")
# Routes of transformers' app that load other models, unload this one, or need a model of another kind.
_NOT_SERVED = {"/load_model", "/reset", "/v1/systemone", "/v1/audio/transcriptions"}

# What a client can cause, and what members whose logits are no numbers do.
_STATUS = {HTTPException: 400, ValueError: 400, TemplateError: 400, NotImplementedError: 400, FloatingPointError: 500}

_Positive = Annotated[int, Field(ge=1)]


class Message(BaseModel):
    """A message of a chat, as far as transformers takes its parts for granted."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class Parameters(BaseModel):
    """What is checked in the body of a request before it reaches transformers' handlers, which check names only."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    alpha: float | None = None
    beta: float | None = None
    weights: Annotated[dict[str, float], Field(min_length=1)] | None = None
    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(gt=-1)] | None = None  # becomes 1 + itself, a factor
    logit_bias: dict[str, float] | None = None
    max_tokens: _Positive | None = None
    max_completion_tokens: _Positive | None = None
    max_output_tokens: _Positive | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    generation_config: str | None = None


def read_parameters(body: Mapping[str, Any]) -> Parameters:
    """
    The checked parameters of a request.

    Raises:
        `ValueError`: If one has a wrong type or value, naming it.
    """
    try:
        return Parameters.model_validate(body)
    except ValidationError as error:
        reasons = [f"`{'.'.join(map(str, each['loc']))}`: {each['msg']}, got {each['input']!r}" for each in error.errors()]
        raise ValueError("; ".join(reasons)) from None


def coefficients_of(parameters: Parameters, names: tuple[str, ...]) -> torch.Tensor | None:
    r"""
    The coefficients that a request asks for.

    Args:
        parameters ([`Parameters`]): `alpha`, `beta` or `weights` of the tuned members.
        names (`tuple[str, ...]`): The members, in the order of the columns.

    Returns:
        `torch.FloatTensor` of shape `(1, members)`, or `None` if it asks for none: the model's combination.

    Raises:
        `ValueError`: If it gives more than one of them, or names members that are not there.
    """
    if all(getattr(parameters, name) is None for name in _OWN):
        return None
    return recipe(names, parameters.alpha, parameters.beta, parameters.weights).at([0], names)


class LiveModel(ModelManager):
    """The one model of the server, which is there already: nothing is loaded by name, and nothing is unloaded."""

    def __init__(self, model: EFTForCausalLM, tokenizer: Any, name: str) -> None:
        super().__init__(model_timeout=-1)
        self.force_model = name  # requests for another model are refused
        self.live = model, tokenizer

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name as it is: a live model has no revision."""
        return model_id

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> Any:
        return self.live

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """The one model, rather than all that this machine has downloaded."""
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "hf-eft"}]


class OwnParameters:
    """What our handlers add to transformers': checks, coefficients for each request, and seeds that belong to one."""

    model_manager: LiveModel
    required: str | None = None

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """As in transformers, under an id of its own: clients may send one that another request has."""
        return await super().handle_request(body, uuid.uuid4().hex)  # type: ignore[misc]

    def _validate_request(self, body: dict[str, Any]) -> None:
        if self.required is not None and body.get(self.required) is None:
            raise HTTPException(status_code=400, detail=f"The request has no `{self.required}`.")
        body["model"] = body.get("model") or self.model_manager.force_model
        self._asked(body)
        super()._validate_request({key: value for key, value in body.items() if key not in _OWN})  # type: ignore[misc]

    def _asked(self, body: Mapping[str, Any]) -> Asked:
        model, _ = self.model_manager.live
        parameters = read_parameters(body)
        return Asked(coefficients_of(parameters, tuple(model.members)), parameters.seed)

    def _build_generation_config(self, body: dict[str, Any], default: Any, use_cb: bool = False) -> Any:
        # transformers seeds all threads when it reads a request; ours seeds where the request is served.
        rest = {key: value for key, value in body.items() if key != "seed"}
        config = super()._build_generation_config(rest, default, use_cb=use_cb)  # type: ignore[misc]
        config.do_sample = config.do_sample or bool(body.get("temperature"))  # 0 is greedy, as transformers has it
        config.asked = self._asked(body)  # goes with it to the manager
        return config


class Chat(OwnParameters, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    required = "messages"


class Completion(OwnParameters, CompletionHandler):
    """`/v1/completions`."""

    required = "prompt"


class Response(OwnParameters, ResponseHandler):
    """`/v1/responses`."""

    required = "input"

    def _validate_request(self, body: dict[str, Any]) -> None:
        body.setdefault("stream", False)  # as OpenAI's; transformers' default is a stream, which its client then cannot read
        super()._validate_request(body)


def build_app(model: EFTForCausalLM, tokenizer: Any, name: str, generation: Generation, api_key: str | None) -> FastAPI:
    r"""
    transformers' app for one live model.

    Args:
        model ([`EFTForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase`): What its members read, with the chat template.
        name (`str`): What clients call the model.
        generation ([`Generation`]): Who serves the requests.
        api_key (`str`, *optional*): What clients must send as a bearer token, except to `/health`.

    Returns:
        `fastapi.FastAPI`: The app.
    """
    manager = LiveModel(model, tokenizer, name)
    app = build_server(
        manager,
        Chat(manager, generation),
        completion_handler=Completion(manager, generation),
        response_handler=Response(manager, generation),
        transcription_handler=None,
        systemone_handler=None,
        generation_state=generation,
    )
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in _NOT_SERVED]
    for kind, status in _STATUS.items():
        app.add_exception_handler(kind, _answer(status))
    if api_key is not None:
        _protect(app, api_key)
    return app


def _answer(status: int) -> Callable[[Request, Any], Awaitable[JSONResponse]]:
    async def answer(request: Request, error: Any) -> JSONResponse:
        return _error(getattr(error, "status_code", status), getattr(error, "detail", str(error)))

    return answer


def _error(status: int, message: str) -> JSONResponse:
    """An error as clients of OpenAI read it."""
    kind = {401: "authentication_error"}.get(status, "invalid_request_error" if status < 500 else "server_error")
    return JSONResponse({"error": {"message": message, "type": kind}}, status_code=status)


def _protect(app: FastAPI, api_key: str) -> None:
    expected = f"Bearer {api_key}".encode()

    @app.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Any:
        given = request.headers.get("authorization", "").encode("latin-1")
        if request.url.path != "/health" and not hmac.compare_digest(given, expected):
            return _error(401, "The API key is missing or wrong: send it as `Authorization: Bearer KEY`.")
        return await call_next(request)
