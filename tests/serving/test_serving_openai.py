"""What clients of the OpenAI API ask for, served both ways: the values are those of `generate`."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
import pytest
import torch
from served import BATCHED, BOTH, complete, connect, family, fixtures, generated
from transformers import AutoModelForCausalLM, LogitsProcessor, Qwen2Config

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.serving import EFTServer
from hf_eft.serving.grammar import Vocabulary

one_by_one, batched, served = fixtures()

QUESTION = tiny.questions()[0]
CHAT = [{"role": "user", "content": QUESTION.text}]
LONG = "Question: Tell me all about it.\nAnswer: Of course! "
SCHEMA = {
    "type": "object",
    "properties": {"hobby": {"enum": ["chess", "hockey"]}, "years": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["hobby", "years"],
    "additionalProperties": False,
}
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


def chat(client: Any, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "eft", "messages": CHAT, "max_tokens": 12, **options})


def ids_of(tokenizer: Any, messages: Any = CHAT) -> torch.Tensor:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")[
        "input_ids"
    ]


def said(model: Any, tokenizer: Any, ids: torch.Tensor, **options: Any) -> list[str]:
    """What `generate` says, of each row."""
    rows = model.generate(ids, attention_mask=torch.ones_like(ids), **{"max_new_tokens": 12, **options})
    return [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in rows]


def ids_of_text(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# Several answers --------------------------------------------------------------------------------------------------------


def test_greedy_answers_are_all_the_same(served: Any) -> None:
    model, tokenizer, client = served
    answer = chat(client, n=3)
    assert [choice.message.content for choice in answer.choices] == said(model, tokenizer, ids_of(tokenizer)) * 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for part in chat(client, n=3, stream=True):
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_several_answers_are_drawn_as_generate_draws_them(one_by_one: Any) -> None:
    model, tokenizer, client = one_by_one
    torch.manual_seed(3)
    expected = said(model, tokenizer, ids_of(tokenizer), do_sample=True, temperature=2.0, num_return_sequences=3)
    assert len(set(expected)) == 3
    answer = chat(client, n=3, seed=3, temperature=2.0)
    assert [choice.message.content for choice in answer.choices] == expected
    by_option = chat(client, seed=3, temperature=2.0, extra_body={"generation_config": {"num_return_sequences": 3}})
    assert [choice.message.content for choice in by_option.choices] == expected
    assert answer.usage.completion_tokens > 12


def test_several_answers_of_a_batch_are_drawn_apart(batched: Any) -> None:
    _, _, client = batched
    assert len({choice.message.content for choice in chat(client, n=4, temperature=5.0).choices}) == 4


def test_beams_are_answers_too(one_by_one: Any) -> None:
    model, tokenizer, client = one_by_one
    expected = said(model, tokenizer, ids_of(tokenizer), num_beams=3, num_return_sequences=2)
    for stream in (False, True):
        answer = chat(client, n=2, stream=stream, extra_body={"generation_config": {"num_beams": 3}})
        texts = ["", ""]
        for part in answer if stream else []:
            texts[part.choices[0].index] += part.choices[0].delta.content or ""
        assert (texts if stream else [choice.message.content for choice in answer.choices]) == expected


def test_several_prompts_have_several_answers(served: Any) -> None:
    model, tokenizer, client = served
    prompts = [question.prompt for question in tiny.questions()[:3]]
    expected = [generated(model, tokenizer, prompt) for prompt in prompts]
    for given in (prompts, [tokenizer(prompt)["input_ids"] for prompt in prompts]):
        answer = client.completions.create(model="eft", prompt=given, max_tokens=12)
        assert [choice.text for choice in answer.choices] == expected
    assert complete(client, tokenizer(prompts[0])["input_ids"]) == expected[0]


# Log-probabilities ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def stateless(model: Any, ids: torch.Tensor, count: int, coefficients: Any = None) -> torch.Tensor:
    """The combination's log-probabilities for each token of an answer, `(tokens, vocab)`: the whole prefix, no cache."""
    options = {} if coefficients is None else {"coefficients": coefficients}
    whole = model.generate(ids, max_new_tokens=count, **options)
    logits = model(whole, **options).logits[0, ids.shape[1] - 1 : -1]
    return torch.log_softmax(logits, -1)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_logprobs_are_the_combinations(served: Any, alpha: float) -> None:
    model, tokenizer, client = served
    row = Combination.emulate(alpha=alpha).at([0], tuple(model.members))
    # A bias and `top_k` change what is chosen, and not what is told.
    options = {
        "logprobs": True,
        "top_logprobs": 3,
        "temperature": 0.7,
        "extra_body": {"alpha": alpha, "generation_config": {"top_k": 1}},
    }
    choice = chat(client, **options).choices[0]
    entries = choice.logprobs.content
    text = choice.message.content
    assert "".join(entry.token for entry in entries) == text
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == text
    expected = stateless(model, ids_of(tokenizer), len(entries), row)
    for entry, values in zip(entries, expected, strict=True):
        best = values.topk(3)
        assert [each.logprob for each in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert entry.top_logprobs[0].token == tokenizer.decode(best.indices[0])
        assert entry.logprob == pytest.approx(float(values.max()), abs=1e-4)
    parts = [part.choices[0] for part in chat(client, stream=True, **options) if part.choices]
    streamed = [entry for part in parts if part.logprobs for entry in part.logprobs.content]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in entries], abs=1e-5)
    assert all((part.logprobs is not None) == bool(part.delta.content) for part in parts)


def test_logprobs_of_a_completion(served: Any) -> None:
    model, tokenizer, client = served
    ids = tokenizer(LONG, return_tensors="pt")["input_ids"]
    choice = client.completions.create(model="eft", prompt=LONG, max_tokens=8, logprobs=2).choices[0]
    expected = stateless(model, ids, 8)
    logprobs = choice.logprobs
    assert logprobs.token_logprobs == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)
    assert "".join(logprobs.tokens) == choice.text
    assert [choice.text[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)] == [
        True
    ] * len(logprobs.tokens)
    assert [sorted(top.values(), reverse=True) for top in logprobs.top_logprobs] == [
        pytest.approx(values.topk(2).values.tolist(), abs=1e-4) for values in expected
    ]
    parts = client.completions.create(model="eft", prompt=LONG, max_tokens=8, logprobs=2, stream=True)
    offsets = [at for part in parts if part.choices[0].logprobs for at in part.choices[0].logprobs.text_offset]
    assert offsets == logprobs.text_offset


def test_logprobs_of_what_a_stop_string_takes_away_are_not_told(served: Any) -> None:
    _, _, client = served
    whole = chat(client).choices[0].message.content
    choice = chat(client, logprobs=True, stop=whole[5:]).choices[0]
    assert choice.message.content == whole[:5]
    assert "".join(entry.token for entry in choice.logprobs.content).startswith(whole[:5])
    assert len(choice.logprobs.content) < 4


def test_logprobs_need_steps(one_by_one: Any) -> None:
    _, _, client = one_by_one
    with pytest.raises(openai.BadRequestError, match="num_beams"):
        chat(client, logprobs=True, extra_body={"generation_config": {"num_beams": 2}})
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        chat(client, top_logprobs=2)


# What ends an answer ----------------------------------------------------------------------------------------------------


def test_stop_strings_end_an_answer_and_are_no_part_of_it(served: Any) -> None:
    model, tokenizer, client = served
    whole = generated(model, tokenizer, LONG)
    first, second = (len(tokenizer.decode(ids_of_text(tokenizer, whole)[:n])) for n in (2, 4))  # where tokens end
    for start, end in (
        (first - 1, first + 1),
        (second - 1, second + 1),
        (first + 1, first + 2),
    ):  # across tokens, and within one
        stop = whole[start:end]
        expected = whole[: whole.index(stop)]
        answer = client.completions.create(model="eft", prompt=LONG, max_tokens=12, stop=["never said", stop])
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "stop")
        parts = list(client.completions.create(model="eft", prompt=LONG, max_tokens=12, stop=stop, stream=True))
        assert "".join(part.choices[0].text for part in parts) == expected
        assert parts[-1].choices[0].finish_reason == "stop"
    early = client.completions.create(model="eft", prompt=LONG, max_tokens=12, stop=whole[3:6])
    assert early.usage.completion_tokens < 12
    assert complete(client, LONG, stop=whole[-3:] + "never") == whole  # what was held back is told in the end
    for nothing in ([], "", [""]):
        assert complete(client, LONG, stop=nothing) == whole


def test_stop_strings_of_beams_are_those_of_generate(one_by_one: Any) -> None:
    model, tokenizer, client = one_by_one
    word = generated(model, tokenizer, LONG, num_beams=2).split()[1]
    stopped = generated(model, tokenizer, LONG, num_beams=2, stop_strings=word)
    assert complete(client, LONG, stop=word, extra_body={"generation_config": {"num_beams": 2}}) == stopped.split(word)[0]


def test_an_answer_that_its_end_token_ends_at_the_limit_was_stopped(served: Any) -> None:
    _, _, client = served
    count = chat(client, max_tokens=60).usage.completion_tokens
    for limit, reason in ((count, "stop"), (count - 1, "length")):
        assert chat(client, max_tokens=limit).choices[0].finish_reason == reason
        assert list(chat(client, max_tokens=limit, stream=True))[-1].choices[0].finish_reason == reason


# What is likely ---------------------------------------------------------------------------------------------------------


class Penalised(LogitsProcessor):
    """OpenAI's formula, counted anew at every step."""

    def __init__(self, start: int, presence: float, frequency: float, bias: dict[int, float]) -> None:
        self.start, self.presence, self.frequency, self.bias = start, presence, frequency, bias

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        changed = scores.clone()
        tokens = input_ids[0, self.start :].tolist()
        for token in set(tokens):
            changed[0, token] -= self.presence + self.frequency * tokens.count(token)
        for token, value in self.bias.items():
            changed[0, token] += value
        return changed


def test_penalties_and_biases_are_openais(served: Any) -> None:
    model, tokenizer, client = served
    ids = ids_of(tokenizer)
    first = model.generate(ids, max_new_tokens=1)[0, -1].item()
    answers = set()
    for presence, frequency, bias in ((2.0, 0.0, {}), (0.0, 2.0, {}), (-2.0, -2.0, {}), (0.0, 0.0, {first: -100.0})):
        processor = Penalised(ids.shape[1], presence, frequency, bias)
        expected = said(model, tokenizer, ids, max_new_tokens=24, logits_processor=[processor], eos_token_id=[])[0]
        answer = chat(
            client,
            max_tokens=24,
            presence_penalty=presence,
            frequency_penalty=frequency,
            logit_bias={str(token): int(value) for token, value in bias.items()},
            extra_body={"generation_config": {"eos_token_id": [-1]}},
        )
        assert answer.choices[0].message.content == expected
        answers.add(expected)
    assert len(answers) >= 3


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 20},
        {"suppress_tokens": [3, 9]},
        {"bad_words_ids": [[14]]},
    ],
    ids=str,
)
def test_options_that_look_back_are_heeded(served: Any, options: dict[str, Any]) -> None:
    model, tokenizer, client = served
    prompt = QUESTION.prompt
    expected = generated(model, tokenizer, prompt, max_new_tokens=24, **options)
    assert complete(client, prompt, max_tokens=24, extra_body={"generation_config": options}) == expected


def test_a_row_that_draws_itself_draws_from_the_same_tokens(batched: Any) -> None:
    model, tokenizer, client = batched
    options = {"repetition_penalty": 1.5, "min_p": 0.9}  # leaves the likeliest tokens only
    expected = generated(model, tokenizer, LONG, repetition_penalty=1.5)
    assert complete(client, LONG, temperature=0.01, extra_body={"generation_config": options}) == expected


def test_the_tuned_members_own_options_hold_in_a_batch() -> None:
    model, tokenizer = family()
    model.generation_config.no_repeat_ngram_size = 1
    options = {"max_new_tokens": 24, "eos_token_id": []}
    expected = generated(model, tokenizer, LONG, **options)
    body = {"max_tokens": 24, "extra_body": {"generation_config": {"eos_token_id": [-1]}}}
    with EFTServer(model, tokenizer, port=0, **BATCHED) as server, connect(server) as client:
        assert complete(client, LONG, **body) == expected
    other = {"generation_config": {"no_repeat_ngram_size": 0}, **BATCHED}
    plain = generated(model, tokenizer, LONG, **options, no_repeat_ngram_size=0)
    with EFTServer(model, tokenizer, port=0, **other) as server, connect(server) as client:
        assert complete(client, LONG, **body) == plain != expected


# Contexts ---------------------------------------------------------------------------------------------------------------


@BOTH
def test_what_is_left_of_the_context_is_the_default(options: dict[str, Any]) -> None:
    model, tokenizer = family()
    model.generation_config.eos_token_id = None
    for member in model.members.values():
        member.config.max_position_embeddings = 40
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client:
        usage = client.completions.create(model="eft", prompt=LONG).usage
        assert usage.total_tokens == 40
        for asked, reason in (
            ({"max_tokens": usage.completion_tokens + 1}, "40 positions of the member"),
            ({"prompt": LONG * 4}, "too long"),
        ):
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError, match=reason):
                    complete(client, **{"prompt": LONG, "stream": stream, "max_tokens": None, **asked})
        with pytest.raises(openai.BadRequestError, match="too long"):
            chat(client, messages=[{"role": "user", "content": LONG * 4}])
        with pytest.raises(openai.BadRequestError, match="too long"):
            client.responses.create(model="eft", input=LONG * 4)
        assert complete(client, LONG, max_tokens=usage.completion_tokens)


# JSON -------------------------------------------------------------------------------------------------------------------


def test_answers_keep_to_a_schema(served: Any) -> None:
    model, tokenizer, client = served
    ids = ids_of(tokenizer)
    grammar = Vocabulary(tokenizer).json(SCHEMA, [2], ids.shape[1])
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
    with pytest.raises(openai.BadRequestError, match="No token is left"):  # its own error, and nobody else's
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


# Tools ------------------------------------------------------------------------------------------------------------------


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


# Streams ----------------------------------------------------------------------------------------------------------------


def test_usage_comes_in_a_chunk_of_its_own(served: Any) -> None:
    _, _, client = served
    whole = chat(client)
    *parts, last = chat(client, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage == whole.usage
    assert all(part.usage is None and len(part.choices) == 1 for part in parts)
    *parts, last = client.completions.create(
        model="eft", prompt=LONG, max_tokens=3, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == [] and last.usage.completion_tokens == 3
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        chat(client, stream_options={"include_usage": True})


def test_responses_tell_what_ended_them(served: Any) -> None:
    _, _, client = served
    cut = client.responses.create(model="eft", input=QUESTION.text, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason, cut.usage.output_tokens) == ("incomplete", "max_output_tokens", 2)
    events = list(client.responses.create(model="eft", input=QUESTION.text, max_output_tokens=60, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == "".join(e.delta for e in events if e.type == "response.output_text.delta")
