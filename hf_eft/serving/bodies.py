"""The bodies of requests, checked: what is heeded, what is ignored with a line in the log, and what is refused by name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..programs.options import option_names

logger = logging.getLogger("hf_eft.serving")

_Positive = Annotated[int, Field(ge=1)]
MOST = 128  # answers to one request; OpenAI's limit
_Many = Annotated[int, Field(ge=1, le=MOST)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]  # OpenAI's range

# Parameters that change no token: whose request it is, where it is billed or kept, how its prompt may be cached.
IGNORED = (
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
)  # fmt: skip

_Body = TypeVar("_Body", bound="Body")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


class StreamOptions(_Part):
    """How a stream is sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against eavesdroppers, which is not sent


class Schema(_Part):
    """A JSON schema with its name."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None  # the schema is always kept to


class Format(_Part):
    """Which texts may be answered: `response_format` of a chat."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class TextFormat(_Part):
    """Which texts may be answered: `text.format` of a response."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class Text(_Part):
    """`text` of a response."""

    format: TextFormat | None = None


class Body(_Part):
    """What every request may carry. Null is absent."""

    # What is refused unless it has one of the values that ask for nothing, and what to do instead.
    refused: ClassVar[dict[str, tuple[tuple[Any, ...], str]]] = {}

    model: str | None = None
    alpha: float | dict[str, float] | None = None  # by phase: {"think": 1.2, "answer": 0.6}
    beta: float | dict[str, float] | None = None
    weights: Annotated[dict[str, float | dict[str, float]], Field(min_length=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    generation_config: str | dict[str, Any] | None = None


class _Sampled(Body):
    """What chats and completions have in common."""

    n: _Many = 1
    stop: str | list[str] | None = None
    frequency_penalty: _Penalty = 0.0
    presence_penalty: _Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    max_tokens: _Positive | None = None

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer. An empty one is none."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]


class _Talk(Body):
    """What chats and responses have in common."""

    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] = {}


class ChatBody(_Sampled, _Talk):
    """`/v1/chat/completions`."""

    refused = {
        "audio": ((), "members read and write text only"),
        "function_call": ((), "use `tool_choice`"),
        "functions": ((), "use `tools`"),
        "modalities": ((["text"],), "members write text only"),
        "moderation": ((), "nothing here moderates"),
        "prediction": ((), "leave it out; for drafts, `prompt_lookup_num_tokens` in `generation_config`"),
        "reasoning_effort": ((), "say it as the chat template calls it, in `chat_template_kwargs`"),
        "verbosity": ((), "say it in a message"),
        "web_search_options": ((), "nothing is searched"),
    }  # fmt: skip

    messages: list[Any]
    max_completion_tokens: _Positive | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format | None = None


class CompletionBody(_Sampled):
    """`/v1/completions`."""

    refused = {
        "best_of": ((1,), "ask for `n` answers and choose among them"),
        "echo": ((False,), "put the prompt before the answer yourself"),
        "suffix": ((), "models that continue a text do not fill one in"),
    }

    prompt: str | Annotated[list[int], Field(min_length=1)] | Annotated[list[str] | list[list[int]], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, texts or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt


class ResponseBody(_Talk):
    """`/v1/responses`."""

    refused = {
        "background": ((False,), "an answer is sent when it is there"),
        "conversation": ((), "send the messages in `input`: nothing is kept here"),
        "include": (([],), "nothing of it is made here; log-probabilities are in `/v1/chat/completions`"),
        "max_tool_calls": ((), "no tool is called here: the calls are the answer"),
        "moderation": ((), "nothing here moderates"),
        "previous_response_id": ((), "send the messages in `input`: nothing is kept here"),
        "prompt": ((), "send the messages in `input`: no prompts are kept here"),
        "reasoning": (({},), "say it as the chat template calls it, in `chat_template_kwargs`"),
        "top_logprobs": ((0,), "log-probabilities are in `/v1/chat/completions`"),
        "truncation": (("disabled",), "shorten `input` yourself"),
    }  # fmt: skip

    input: str | list[Any]
    instructions: str | None = None
    max_output_tokens: _Positive | None = None
    text: Text | None = None


def read_body(kind: type[_Body], given: Mapping[str, Any]) -> _Body:
    r"""
    The checked body of a request, which is used in place of what was given.

    Args:
        kind (`type`): [`ChatBody`], [`CompletionBody`] or [`ResponseBody`].
        given (`Mapping[str, Any]`): What the client sent.

    Raises:
        `ValueError`: If a parameter is unknown or not heeded, or has a wrong type or value, naming it.
    """
    body = {name: value for name, value in given.items() if value is not None}
    for name in IGNORED:
        if name in body:
            logger.warning("Ignored in a request: %r, which changes no token.", name)
            del body[name]
    for name, (nothing, remedy) in kind.refused.items():
        if name in body and body.pop(name) not in nothing:
            raise ValueError(f"`{name}` is not heeded here: {remedy}.")
    known = kind.model_fields
    if unknown := [name for name in body if name not in known]:
        raise ValueError(_unknown(unknown[0], list(known)))
    try:
        checked = kind.model_validate(body)
    except ValidationError as error:
        reasons = [f"`{'.'.join(map(str, each['loc']))}`: {each['msg']}, got {each['input']!r:.200}" for each in error.errors()]
        raise ValueError("; ".join(reasons)) from None
    if checked.stream_options is not None and not checked.stream:
        raise ValueError("`stream_options` are for `stream: true`.")
    return checked


def _unknown(name: str, known: list[str]) -> str:
    if name in option_names():
        return f"`{name}` is an option of `generate`: put it into `generation_config`, as in {{'generation_config': {{'{name}': ...}}}}."
    close = difflib.get_close_matches(name, known, n=1)
    return f"`{name}` is no parameter here" + (f"; did you mean `{close[0]}`?" if close else ".")
