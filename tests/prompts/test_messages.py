"""Messages as clients send them: what is read, and how what is not is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hf_eft.prompts.messages import read_messages

PART = {"type": "text", "text": "Who"}
USER = {"role": "user", "content": "Who?"}


def calls(**function: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", **function}}],
    }


@pytest.mark.parametrize(
    "message, read",
    [
        (USER, USER),
        ({**USER, "name": None, "tool_calls": None, "function_call": None}, USER),
        ({**USER, "tool_calls": [], "refusal": ""}, USER),
        ({"role": "user", "content": ""}, {"role": "user", "content": ""}),
        ({"role": "user", "content": [PART, {"type": "input_text", "text": "?"}]}, {"role": "user", "content": "Who ?"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "content": "Hockey.", "tool_calls": None, "audio": None}, {"role": "assistant", "content": "Hockey."}),
        ({"role": "assistant", "content": "x", "reasoning_content": "y"}, {"role": "assistant", "content": "x", "reasoning_content": "y"}),
        ({"role": "tool", "content": "42", "tool_call_id": "1"}, {"role": "tool", "content": "42", "tool_call_id": "1"}),
        ({"role": "developer", "content": "Be brief."}, {"role": "developer", "content": "Be brief."}),
    ],
)  # fmt: skip
def test_a_message_is_what_templates_read(message: dict[str, Any], read: dict[str, Any]) -> None:
    before = copy.deepcopy(message)
    assert read_messages([message, message]) == [read, read]
    assert message == before


@pytest.mark.parametrize(
    "given, read",
    [
        ({"arguments": '{"a": [1, null]}'}, {"a": [1, None]}),
        ({"arguments": {"a": 1}}, {"a": 1}),
        ({"arguments": None}, {}),
        ({"arguments": ""}, {}),
        ({}, {}),
    ],
)
def test_arguments_of_a_tool_call_are_an_object(given: dict[str, Any], read: dict[str, Any]) -> None:
    message = calls(**given)
    before = copy.deepcopy(message)
    [made] = read_messages([message])
    assert made["content"] == "" and made["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": read}}
    ]
    assert message == before
    [made] = read_messages([{"role": "assistant", "content": "So:", "tool_calls": [{"name": "look", **given}]}])
    assert made == {"role": "assistant", "content": "So:", "tool_calls": [{"name": "look", "arguments": read}]}


def test_the_developer_s_role_is_the_system_s_where_it_is_asked_for() -> None:
    assert read_messages([{"role": "developer", "content": "x"}], developer_as_system=True) == [
        {"role": "system", "content": "x"}
    ]


@pytest.mark.parametrize(
    "given, error",
    [
        ("hello", '`messages` must be a list of {"role": ..., "content": ...}, got "hello"'),
        ([], "`messages` must be a list"),
        (None, "`messages` must be a list"),
        ([USER, "hello"], "messages[1] must be an object"),
        ([{"content": "x"}], "messages[0]: `role` must be a text, got nothing"),
        ([{"role": 3, "content": "x"}], "messages[0]: `role` must be a text, got 3"),
        ([{"role": " ", "content": "x"}], "messages[0]: `role` is empty"),
        ([USER, {"role": "user"}], "messages[1]: `content` must be a text or a list of parts of text, got nothing"),
        ([{"role": "user", "content": None}], "messages[0]: `content` must be a text"),
        ([{"role": "user", "content": []}], "messages[0]: `content` must be a text"),
        ([{"role": "tool", "content": None}], "messages[0]: `content` must be a text"),
        ([{"role": "user", "content": PART}], '`content` must be a text or a list of parts of text, got {"type": "text",'),
        ([{"role": "user", "content": ["x"]}], "messages[0]: `content[0]` must be a part of text"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text"}]}], "`content[1].text` must be a text, got nothing"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "`content[0].text` must be a text, got nothing"),
        ([{"role": "user", "content": [{"text": "x"}]}], '`content[0].type` must be "text", got nothing'),
        ([{"role": "user", "content": [{"type": "image_url"}]}], '`content[0].type` must be "text", got "image_url"'),
        ([{"role": "user", "content": "\ud800"}], "messages[0]: `content` is no text: '\\ud800' at 0"),
        ([{**USER, "tool_calls": [{"name": "look"}]}], '`tool_calls` are an assistant\'s, not of the role "user"'),
        ([{"role": "assistant", "tool_calls": {"name": "look"}}], "`tool_calls` must be a list"),
        ([{"role": "assistant", "tool_calls": [3]}], "`tool_calls[0]` must be an object"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "`tool_calls[0].function` must be an object with a `name`, got nothing"),
        ([{"role": "assistant", "tool_calls": [{"type": "custom"}]}], '`tool_calls[0].type` must be "function", got "custom"'),
        ([calls(name=None)], "messages[0]: `tool_calls[0].function.name` must be a text, got nothing"),
        ([calls(arguments="[1]")], "`tool_calls[0].function.arguments` must be a JSON object, got [1]"),
        ([calls(arguments="{")], "`tool_calls[0].function.arguments` must be a JSON object: Expecting"),
        ([calls(arguments='{"a": NaN}')], "NaN is no JSON"),
        ([{"role": "tool", "content": "42", "tool_call_id": 1}], "`tool_call_id` must be a text, got 1"),
        ([{"role": "assistant", "function_call": {"name": "look"}}], "`function_call` is not read by chat templates: say it"),
        ([{"role": "assistant", "refusal": "No."}], "`refusal` is not read by chat templates"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(given: Any, error: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_messages(given)
    assert error in str(caught.value)
