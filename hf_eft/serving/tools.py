"""Tools, as the tuned member's family calls them: what its template writes of them, and what is a call in what it says."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.cli.serving.utils import ReasoningText, ToolCall, response_events_to_chunks
from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import load_response_template

logger = logging.getLogger("hf_eft.serving")


@dataclass
class Call:
    """A call of a tool: its name, and its arguments as JSON."""

    name: str
    arguments: str


class Thought(str):
    """A text that is thinking."""

    __slots__ = ()


Part = str | Thought | Call


class Trimmed:
    """A text as it comes, without the spaces at its beginning and its end."""

    def __init__(self) -> None:
        self._begun = False
        self._spaces = ""  # held back: they may be the last

    def feed(self, text: str) -> str:
        """What of the text before and this one can be told."""
        text = self._spaces + text
        if not self._begun:
            text = text.lstrip()
        told = text.rstrip()
        self._spaces = text[len(told) :]
        self._begun = self._begun or bool(told)
        return told


class Parser:
    r"""
    Tells calls and thoughts from the text of an answer as it comes.

    Args:
        template (`dict`): The format, see [`~hf_eft.grammar.calls.response_format`].
        prefix (`str`): The prompt, which may begin a thought.
        tools (`Sequence[dict]`, *optional*): The tools, whose schemas say how arguments are read.
        calls (`bool`, *optional*, defaults to `True`): Whether calls are told; otherwise they are text.

    Spaces around what is said and what is thought are dropped, as transformers does: they belong to the marks.
    """

    def __init__(
        self, template: dict[str, Any], prefix: str, tools: Sequence[dict[str, Any]] | None = None, calls: bool = True
    ) -> None:
        if not calls:
            template = copy.deepcopy(template)
            template["fields"].pop("tool_calls", None)
        spec = load_response_template(template)
        # A prompt without the mark of an answer's beginning says nothing of it, and would be read as a part of it.
        marked = spec.start_anchor_re.search(prefix) is not None
        self._parser = ResponseParser(spec, prefix=prefix if marked else "", tools=list(tools) if tools else None)
        self._raw = ""  # what was read since something was told
        self._broken = False
        self._text, self._thought = Trimmed(), Trimmed()

    def feed(self, text: str) -> list[Part]:
        """What a text is: texts, calls, and thoughts. From a call on that cannot be read, everything is text."""
        if self._broken:
            return self._trimmed([text])
        self._raw += text
        return self._read(lambda: self._parser.feed(text))

    def close(self) -> list[Part]:
        """What is left. A call that was cut off is text."""
        return [] if self._broken else self._read(lambda: self._parser.finalize()[1])

    def _read(self, events: Callable[[], list[dict[str, Any]]]) -> list[Part]:
        try:
            parts = _parts(events())
        except Exception as error:  # whatever a parser raises for what a model can say
            logger.warning("An answer has a call that cannot be read, and is told as text: %s", error)
            self._broken = True
            parts = [self._raw]
        if parts:  # what is held back, because a call may begin there, stays
            self._raw = self._raw.rpartition(parts[-1])[2] if isinstance(parts[-1], str) and parts[-1] else ""
        return self._trimmed(parts)

    def _trimmed(self, parts: Sequence[Part]) -> list[Part]:
        told: list[Part] = []
        for part in parts:
            if isinstance(part, Thought):
                part = Thought(self._thought.feed(part))
            elif isinstance(part, str):
                part = self._text.feed(part)
            if part != "":
                told.append(part)
        return told


def _parts(events: Sequence[dict[str, Any]]) -> list[Part]:
    parts: list[Part] = []
    for item in response_events_to_chunks(list(events)):
        if isinstance(item, ToolCall):
            parts.append(Call(item.name, item.arguments))
        else:
            parts.append(Thought(item) if isinstance(item, ReasoningText) else str(item))
    return parts


@dataclass
class Choice:
    """What is asked of the tools of a request: which the template writes, and which calls are told."""

    tools: list[dict[str, Any]]
    calls: bool  # whether calls are told from the text
    required: list[dict[str, Any]]  # one of these must be called


def read_tools(given: Sequence[dict[str, Any]], choice: str | dict[str, Any] | None) -> Choice:
    r"""
    The tools of a request.

    Args:
        given (`Sequence[dict]`): As in chat completions, or flat, as in responses.
        choice (`str` or `dict`, *optional*): `tool_choice`.

    Raises:
        `ValueError`: If something is no tool, or a tool is chosen that is not there.
    """
    tools = [_tool(i, tool) for i, tool in enumerate(given)]
    if choice is None or choice == "auto":
        return Choice(tools, bool(tools), [])
    if choice == "none":
        return Choice([], False, [])
    if choice == "required":
        if not tools:
            raise ValueError("`tool_choice` requires a call, and there are no `tools`.")
        return Choice(tools, True, tools)
    name = None
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise ValueError(
            '`tool_choice` must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}, '
            f"got {choice!r:.200}."
        )
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise ValueError(f"`tool_choice` is the function {name!r}, and `tools` has none of that name.")
    return Choice(tools, True, named)


def _tool(index: int, tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as chat templates read it."""
    where = f"`tools[{index}]`"
    if tool.get("type") != "function":
        raise ValueError(
            f'{where} must be of the type "function", got {tool.get("type")!r:.200}: no other tools are known here.'
        )
    function = tool.get("function", {name: value for name, value in tool.items() if name != "type"})
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"{where} needs a function with a `name`.")
    if not isinstance(function.get("parameters") or {}, dict):
        raise ValueError(f"{where}: `parameters` must be a JSON schema.")
    kept = {name: value for name, value in function.items() if value is not None and name != "strict"}
    if "parameters" not in kept:
        kept["parameters"] = {"type": "object", "properties": {}}
    if function.get("strict"):
        raise ValueError(
            f"{where}: `strict` is not heeded, since a model calls tools as it likes. Leave it out, or use `tool_choice`."
        )
    return {"type": "function", "function": kept}
