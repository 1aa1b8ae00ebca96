"""`/v1/chat/completions`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ..programs.pictures import Seen
from .answers import Piece
from .asked import Job, Wanted
from .bodies import ChatBody, Format, TextFormat
from .endpoint import DONE, Endpoint, Run, event
from .tools import Call, read_tools


class Chat(Endpoint[ChatBody]):
    """Chats, in the template of the server's tokenizer."""

    kind = ChatBody
    talk = "messages"

    def asks(self, body: ChatBody) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
        return body.messages, read_tools(body.tools, body.tool_choice).tools, body.chat_template_kwargs

    def read(self, body: ChatBody, prompt: Sequence[int], seen: Seen | None) -> list[Job]:
        tools = read_tools(body.tools, body.tool_choice)
        if body.top_logprobs is not None and not body.logprobs:
            raise ValueError("`top_logprobs` are for `logprobs: true`.")
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise ValueError("`max_tokens` and `max_completion_tokens` are two words for the same number: give one of them.")
        wanted = Wanted(
            new_tokens=body.max_completion_tokens or body.max_tokens,
            count=body.n,
            stops=body.stops,
            top=(body.top_logprobs or 0) if body.logprobs else None,
            bias=body.logit_bias,
            presence=body.presence_penalty,
            frequency=body.frequency_penalty,
            schema=schema_of(body.response_format, _schema(body.response_format), body.messages),
            tools=tools,
            one_call=not body.parallel_tool_calls,
            parsed=True,
            seen=seen,
        )
        return [self.reader.job(body, prompt, wanted)]

    def whole(self, run: Run[ChatBody]) -> dict[str, Any]:
        choices = []
        for index, answer in enumerate(run.answers):
            pieces = run.pieces[index]
            thought = "".join(piece.reasoning for piece in pieces)
            calls = [piece.call for piece in pieces if piece.call is not None]
            message: dict[str, Any] = {"role": "assistant", "content": run.text(index)}
            if thought:
                message["reasoning_content"] = thought
            if calls:
                message["tool_calls"] = [_call(run.id, index, n, call) for n, call in enumerate(calls)]
            choice = {"index": index, "message": message, "logprobs": None, "finish_reason": answer.finish}
            if run.body.logprobs:
                choice["logprobs"] = self.reader.spelling.in_chat([entry for piece in pieces for entry in piece.entries])
            choices.append(choice)
        return {**self._head(run, "chat.completion"), "choices": choices, "usage": run.usage}

    async def stream(self, run: Run[ChatBody]) -> AsyncGenerator[str, None]:
        told, calls = run.told(), [0] * len(run.answers)
        head = self._head(run, "chat.completion.chunk")
        usage = run.body.stream_options is not None and bool(run.body.stream_options.include_usage)
        if usage:
            head["usage"] = None

        def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return event({**head, "choices": [choice]})

        begun: set[int] = set()
        async for index, pieces, finish in told:
            if index not in begun:
                begun.add(index)
                yield chunk(index, {"role": "assistant", "content": ""})
            for piece in pieces:
                logprobs = self.reader.spelling.in_chat(piece.entries) if piece.entries else None
                yield chunk(index, self._delta(run, index, piece, calls), logprobs=logprobs)
            if finish is not None:
                yield chunk(index, {}, finish)
        if usage:
            yield event({**head, "choices": [], "usage": run.usage})
        yield DONE

    def _delta(self, run: Run[ChatBody], index: int, piece: Piece, calls: list[int]) -> dict[str, Any]:
        if piece.call is not None:
            calls[index] += 1
            number = calls[index] - 1
            return {"tool_calls": [{"index": number, **_call(run.id, index, number, piece.call)}]}
        return {"reasoning_content": piece.reasoning} if piece.reasoning else {"content": piece.text}

    def _head(self, run: Run[ChatBody], kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{run.id}", "object": kind, "created": run.created, "model": run.model}


def schema_of(
    wanted: Format | TextFormat | None, schema: dict[str, Any] | None, messages: Sequence[Any]
) -> dict[str, Any] | None:
    r"""
    The JSON schema that a request asks its answers to keep to, if any.

    Args:
        wanted ([`Format`] or [`TextFormat`], *optional*): What is asked for.
        schema (`dict`, *optional*): The schema in it.
        messages (`Sequence`): The messages.

    Raises:
        `ValueError`: If there is no schema where there must be one; or if JSON of any kind is asked for, and no message speaks of it.
    """
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_schema":
        if schema is None:
            raise ValueError("An answer of the type `json_schema` needs a `schema`.")
        return schema
    if "json" not in json.dumps(messages, default=lambda picture: None).lower():
        # OpenAI's own rule: a model that was not asked for JSON, and is held to it, writes an empty object or never ends.
        raise ValueError(
            "An answer of the type `json_object` needs a message that asks for JSON: say so in one, or give a `json_schema`."
        )
    return {"type": "object"}


def _schema(wanted: Format | None) -> dict[str, Any] | None:
    return None if wanted is None or wanted.json_schema is None else wanted.json_schema.schema_


def _call(run: str, index: int, number: int, call: Call) -> dict[str, Any]:
    return {
        "id": f"call_{run}_{index}_{number}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
