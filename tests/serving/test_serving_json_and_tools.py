"""Answers that keep to a form, served both ways: JSON of a schema, and calls of tools."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
import pytest
import torch
from served import BOTH, CHAT, QUESTION, chat, connect, family, fixtures, ids_of, said
from transformers import AutoModelForCausalLM, Qwen2Config

from hf_eft import EFTForCausalLM, tiny
from hf_eft.grammar import GrammarLogitsProcessor, Grammars
from hf_eft.serving import EFTServer

one_by_one, batched, served = fixtures()

# JSON -----------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"hobby": {"enum": ["chess", "hockey"]}, "years": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["hobby", "years"],
    "additionalProperties": False,
}


def test_answers_keep_to_a_schema(served: Any) -> None:
    model, tokenizer, client = served
    ids = ids_of(tokenizer)
    grammar = GrammarLogitsProcessor(Grammars(tokenizer, ends=2).json(SCHEMA), ids)
    expected = said(model, tokenizer, ids, max_new_tokens=60, logits_processor=[grammar])[0]
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    answer = chat(client, max_tokens=60, response_format=wanted).choices[0]
    assert answer.message.content == expected and answer.finish_reason == "stop"
    assert json.loads(expected)["hobby"] in ("chess", "hockey")
    for choice in chat(client, max_tokens=60, n=3, temperature=3.0, response_format=wanted).choices:
        read = json.loads(choice.message.content)
        assert set(read) == {"hobby", "years"} and 0 <= read["years"] <= 99
    text = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    assert client.responses.create(model="eft", input=QUESTION.text, max_output_tokens=60, text=text).output_text == expected


def test_json_of_any_kind_is_an_object(served: Any) -> None:
    _, _, client = served
    messages = [{"role": "user", "content": "Answer in JSON. " + QUESTION.text}]
    answer = chat(client, messages=messages, max_tokens=80, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)
    with pytest.raises(openai.BadRequestError, match="asks for JSON"):
        chat(client, response_format={"type": "json_object"})


def test_what_no_grammar_can_keep_to_is_refused(served: Any) -> None:
    _, _, client = served
    for schema in ({"type": "objct"}, {"type": "string", "format": "weird"}):
        with pytest.raises(openai.BadRequestError, match="cannot be kept to"):
            chat(client, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
    with pytest.raises(openai.BadRequestError, match=r"oken (is )?left"):  # its own error, and nobody else's
        chat(
            client,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [1]}}},
            extra_body={"generation_config": {"min_new_tokens": 9}},
        )
    assert chat(client).choices[0].message.content


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    with (
        EFTServer(*family(), port=0) as server,
        connect(server) as client,
        pytest.raises(openai.BadRequestError, match=r"hf-eft\[grammar\]"),
    ):
        chat(client, response_format=wanted)


# Tools ----------------------------------------------------------------------------------------------------------------

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}


def qwen(seed: int, tokenizer: Any, width: int = 32) -> Any:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, max_position_embeddings=512,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def qwens() -> tuple[EFTForCausalLM, Any]:
    tokenizer = tiny.load().tokenizer
    members = qwen(1, tokenizer, 64), qwen(2, tokenizer), qwen(3, tokenizer)
    return EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2]), tokenizer


@BOTH
def test_a_call_that_is_required_is_made(options: dict[str, Any]) -> None:
    model, tokenizer = qwens()
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    named = {"type": "function", "function": {"name": "weather"}}
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client:
        for choice in ("required", named):
            answer = chat(client, max_tokens=300, tools=[WEATHER, other], tool_choice=choice, temperature=1.0)
            assert answer.choices[0].finish_reason == "tool_calls"
            (call,) = answer.choices[0].message.tool_calls
            assert call.function.name in ("weather", "other") if choice == "required" else call.function.name == "weather"
            if call.function.name == "weather":
                assert 1 <= json.loads(call.function.arguments)["days"] <= 9
            parts = [part.choices[0] for part in chat(client, max_tokens=300, tools=[WEATHER], tool_choice=choice, stream=True)]
            calls = [call for part in parts for call in part.delta.tool_calls or []]
            assert [call.function.name for call in calls] == ["weather"] and parts[-1].finish_reason == "tool_calls"
        turn = [*CHAT, answer.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
        assert chat(client, messages=turn, tools=[WEATHER]).choices[0].finish_reason
        flat = [{"type": "function", **WEATHER["function"], "strict": None}]
        response = client.responses.create(
            model="eft",
            input=QUESTION.text,
            max_output_tokens=300,
            tools=flat,
            tool_choice={"type": "function", "name": "weather"},
        )
        (item,) = [item for item in response.output if item.type == "function_call"]
        assert item.name == "weather" and response.status == "completed"
        with pytest.raises(openai.BadRequestError, match="none of that name"):
            chat(client, tools=[other], tool_choice=named)


def test_a_family_without_a_format_cannot_be_made_to_call(served: Any) -> None:
    _, _, client = served
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        chat(client, tools=[WEATHER], tool_choice="required")


def says(model: Any, tokenizer: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model say a text, as a trained one would."""
    new = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(model, "generate", lambda **inputs: torch.cat([inputs["input_ids"], new], 1))


def test_thoughts_and_calls_are_told_from_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = qwens()
    one = '<tool_call>\n{"name": "weather", "arguments": {"days": 2}}\n</tool_call>'
    with EFTServer(model, tokenizer, port=0) as server, connect(server) as client:
        says(model, tokenizer, f"<think>Hm.</think>I look.{one}{one}", monkeypatch)
        choice = chat(client, max_tokens=200, tools=[WEATHER]).choices[0]
        assert (choice.message.content, choice.message.reasoning_content) == ("I look.", "Hm.")
        assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [{"days": 2}] * 2
        assert len({call.id for call in choice.message.tool_calls}) == 2 and choice.finish_reason == "tool_calls"

        single = chat(client, max_tokens=200, tools=[WEATHER], parallel_tool_calls=False).choices[0]
        assert len(single.message.tool_calls) == 1
        untold = chat(client, max_tokens=200, tools=[WEATHER], tool_choice="none").choices[0]
        assert untold.message.tool_calls is None and one in untold.message.content and untold.finish_reason == "length"

        parts = [part.choices[0] for part in chat(client, max_tokens=200, tools=[WEATHER], stream=True)]
        deltas = [call for part in parts for call in part.delta.tool_calls or []]
        assert [call.index for call in deltas] == [0, 1] and parts[-1].finish_reason == "tool_calls"
        flat = [{"type": "function", **WEATHER["function"], "strict": None}]
        response = client.responses.create(model="eft", input="Hi", max_output_tokens=200, tools=flat)
        assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
        result = {"type": "function_call_output", "call_id": response.output[2].call_id, "output": "rain"}
        turn = [{"role": "user", "content": "Hi"}, *response.model_dump()["output"], result]
        assert client.responses.create(model="eft", input=turn).output

        for broken in (
            '<tool_call>\n{"name": "weath',
            "<tool_call>\nnothing\n</tool_call> end",
            '<tool_call>\n{"a": 1}\n</tool_call>',
        ):
            says(model, tokenizer, "So: " + broken, monkeypatch)
            choice = chat(client, max_tokens=200, tools=[WEATHER]).choices[0]
            assert choice.message.tool_calls is None and broken.strip() in choice.message.content
