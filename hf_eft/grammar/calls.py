"""Calls of tools as a family writes them, and the grammar of one that must be made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..members.combined import Combined

# Of JSON: one space at most between its parts, since a small model that may write any number of them writes nothing else.
JSON_OPTIONS: dict[str, Any] = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
_LINE = "\n"  # between the marks of a call and its JSON, as the families that write both have it


def response_format(model: Combined, tokenizer: Any) -> dict[str, Any] | None:
    """How calls and thoughts are written: the tokenizer's word, or else transformers' for the family of the first tuned member."""
    from transformers.cli.serving.utils import get_response_template  # brings a web server

    tuned = model.combination.tuned_names or tuple(model.members)
    return get_response_template(tokenizer, model.members[tuned[0]])


def forced_call(template: Mapping[str, Any] | None, required: Sequence[Mapping[str, Any]]) -> str:
    r"""
    The grammar, in `llguidance`'s Lark, of one call of one of some tools.

    Args:
        template (`dict`, *optional*): The format, see [`response_format`].
        required (`Sequence[dict]`): The tools.

    Raises:
        `NotImplementedError`: If calls of this format are not JSON between two marks, or there is no format.
    """
    field = (template or {}).get("fields", {}).get("tool_calls", {})
    opened = field.get("open") or field.get("open_pattern", "").removeprefix(r"\s*")
    closed = field.get("close")
    plain = isinstance(opened, str) and isinstance(closed, str) and re.escape(opened).replace("\\", "") == opened
    json_of_one = field.get("content") == "json" and field.get("transform") == {"type": "function", "function": "{content}"}
    if not (plain and opened and json_of_one and not field.get("content_args")):
        raise NotImplementedError(
            'A call cannot be forced in the format of the tuned member\'s family (`tool_choice` may be "auto" or "none"): it is not JSON '
            "between two marks. Ask for JSON of the function's parameters with `response_format`, or `Grammars.json`, instead."
        )
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in required
    ]
    schema: dict[str, Any] = {"anyOf": calls, "x-guidance": JSON_OPTIONS}
    return f"start: {json.dumps(opened + _LINE)} call {json.dumps(_LINE + closed)}\ncall: %json {json.dumps(schema)}\n"
