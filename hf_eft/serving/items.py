"""The output items of a response, and the events that tell of them as they come."""

from __future__ import annotations

import json
from typing import Any

from .answers import Piece
from .tools import Call


class Items:
    r"""
    Makes items of the pieces of an answer: thoughts, a message, calls.

    Args:
        run (`str`): The id of the request.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._number = 0  # of the next event
        self._open: dict[str, Any] | None = None
        self.done: list[dict[str, Any]] = []

    def event(self, kind: str, **content: Any) -> str:
        """An event of the stream."""
        number, self._number = self._number, self._number + 1
        data = {"type": kind, "sequence_number": number, **content}
        return f"event: {kind}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"

    def add(self, piece: Piece) -> list[str]:
        """The events of a piece."""
        if piece.call is not None:
            return [*self.close(spare=True), *self._call(piece.call)]
        if piece.reasoning:
            return self._text("reasoning", "reasoning_text", piece.reasoning)
        return self._text("message", "output_text", piece.text) if piece.text else []

    def close(self, spare: bool = False) -> list[str]:
        """The events of the end of what is open. An answer has an item, though it be an empty message, unless it is `spare`."""
        if self._open is None:
            return [] if spare or self.done else [*self._begin("message", "output_text")[1], *self.close()]
        item, self._open = self._open, None
        part, at = item["content"][0], self._at(item)
        item["status"] = "completed"
        prefix = f"response.{part['type']}"
        events = [self.event(f"{prefix}.done", **at, content_index=0, text=part["text"], **_logprobs(part))]
        events.append(self.event("response.content_part.done", **at, content_index=0, part=part))
        self.done.append(item)
        return [*events, self.event("response.output_item.done", output_index=at["output_index"], item=item)]

    def _text(self, kind: str, part: str, text: str) -> list[str]:
        events, item = [], self._open
        if item is None or item["type"] != kind:
            events = self.close(spare=True)
            item, begun = self._begin(kind, part)
            events += begun
        item["content"][0]["text"] += text
        events.append(
            self.event(f"response.{part}.delta", **self._at(item), content_index=0, delta=text, **_logprobs({"type": part}))
        )
        return events

    def _begin(self, kind: str, part: str) -> tuple[dict[str, Any], list[str]]:
        number = len(self.done)
        empty: dict[str, Any] = {"type": part, "text": ""}
        item: dict[str, Any] = {
            "id": f"{'msg' if kind == 'message' else 'rs'}_{self._run}_{number}",
            "type": kind,
            "status": "in_progress",
        }
        if kind == "message":
            empty["annotations"] = []
            item["role"] = "assistant"
        else:
            item["summary"] = []
        begun = self.event("response.output_item.added", output_index=number, item={**item, "content": []})
        self._open = item = {**item, "content": [empty]}
        return item, [begun, self.event("response.content_part.added", **self._at(item), content_index=0, part=dict(empty))]

    def _call(self, call: Call) -> list[str]:
        number = len(self.done)
        name = f"call_{self._run}_{number}"
        item = {
            "id": f"fc_{self._run}_{number}", "type": "function_call", "status": "completed", "call_id": name, "name": call.name,
            "arguments": call.arguments,
        }  # fmt: skip
        at = self._at(item)
        self.done.append(item)
        return [
            self.event(
                "response.output_item.added", output_index=number, item={**item, "arguments": "", "status": "in_progress"}
            ),
            self.event("response.function_call_arguments.delta", **at, delta=call.arguments),
            self.event("response.function_call_arguments.done", **at, name=call.name, arguments=call.arguments),
            self.event("response.output_item.done", output_index=number, item=item),
        ]

    def _at(self, item: Any) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self.done)}


def _logprobs(part: dict[str, Any]) -> dict[str, Any]:
    """The events of texts have log-probabilities, which are told in chats only."""
    return {"logprobs": []} if part["type"] == "output_text" else {}
