"""`/v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ..programs.pictures import Seen
from .answers import LENGTH
from .asked import Job, Wanted
from .bodies import ResponseBody
from .chat import schema_of
from .endpoint import Endpoint, Run
from .items import Items
from .tools import read_tools


class Responses(Endpoint[ResponseBody]):
    """Chats in the form of OpenAI's responses. Nothing is kept between requests."""

    kind = ResponseBody
    talk = "input"

    def asks(self, body: ResponseBody) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
        return messages_of(body), read_tools(body.tools, body.tool_choice).tools, body.chat_template_kwargs

    def read(self, body: ResponseBody, prompt: Sequence[int], seen: Seen | None) -> list[Job]:
        tools = read_tools(body.tools, body.tool_choice)
        messages = messages_of(body)
        wanted_format = body.text.format if body.text is not None else None
        wanted = Wanted(
            new_tokens=body.max_output_tokens,
            schema=schema_of(wanted_format, None if wanted_format is None else wanted_format.schema_, messages),
            tools=tools,
            one_call=not body.parallel_tool_calls,
            parsed=True,
            seen=seen,
        )
        jobs = [self.reader.job(body, prompt, wanted)]
        if len(jobs[0].answers) > 1:
            raise ValueError("A response is one answer: leave `num_return_sequences` out.")
        return jobs

    def whole(self, run: Run[ResponseBody]) -> dict[str, Any]:
        items = Items(run.id)
        for piece in run.pieces[0]:
            items.add(piece)
        items.close()
        return self._response(run, items)

    async def stream(self, run: Run[ResponseBody]) -> AsyncGenerator[str, None]:
        items = Items(run.id)
        begun = False
        async for _, pieces, _ in run.told():
            if not begun:
                begun = True
                yield items.event("response.created", response=self._response(run, items, "queued"))
                yield items.event("response.in_progress", response=self._response(run, items, "in_progress"))
            for piece in pieces:
                for each in items.add(piece):
                    yield each
        for each in items.close():
            yield each
        response = self._response(run, items)
        yield items.event(f"response.{response['status']}", response=response)

    def _response(self, run: Run[ResponseBody], items: Items, status: str | None = None) -> dict[str, Any]:
        body = run.body
        if status is None:
            status = "incomplete" if run.answers[0].finish == LENGTH else "completed"
        usage = run.usage
        return {
            "id": f"resp_{run.id}",
            "object": "response",
            "created_at": run.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "metadata": {},
            "model": run.model,
            "output": list(items.done),
            "parallel_tool_calls": body.parallel_tool_calls,
            "temperature": body.temperature,
            "tool_choice": _flat(body.tool_choice or "auto"),
            "tools": [{**_flat(tool), "strict": False} for tool in read_tools(body.tools, None).tools],
            "top_p": body.top_p,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            }
            if status in ("completed", "incomplete")
            else None,
        }


def _flat(function: Any) -> Any:
    """A tool, or the choice of one, as responses have it: without the layer that chat completions have around its name."""
    return {"type": "function", **function["function"]} if isinstance(function, dict) and "function" in function else function


def messages_of(body: ResponseBody) -> list[dict[str, Any]]:
    r"""
    The messages of a chat, of `instructions` and `input`.

    Args:
        body ([`ResponseBody`]): A text; parts of one; or items: messages, thoughts, calls and what they gave.

    Raises:
        `ValueError`: If an item is of another kind.
    """
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    thought = ""
    parts: list[Any] = []
    for index, item in enumerate(body.input):
        if not isinstance(item, dict):
            raise ValueError(f"input[{index}] must be an object, got {item!r:.200}.")
        kind = item.get("type")
        if kind == "reasoning":
            thought += "".join(str(part.get("text", "")) for part in item.get("content") or [] if isinstance(part, dict))
        elif item.get("role") is not None:
            message = {"role": item["role"], "content": item.get("content")}
            if thought and item["role"] == "assistant":
                message["reasoning_content"], thought = thought, ""
            messages.append(message)
        elif kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None, **({"reasoning_content": thought} if thought else {})})
                thought = ""
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind in ("input_text", "image"):
            if parts == [] or messages[-1].get("content") is not parts:
                parts = []
                messages.append({"role": "user", "content": parts})
            parts.append(item)
        else:
            raise ValueError(
                f"input[{index}] is of the type {kind!r:.200}. Messages, `input_text`, `input_image`, `reasoning`, `function_call` and "
                "`function_call_output` are read."
            )
    return messages
