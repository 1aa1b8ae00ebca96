"""What clients of the OpenAI API are told, served both ways: several answers, log-probabilities, usage and ends, as `generate` has them."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch
from served import LONG, QUESTION, chat, complete, fixtures, generated, ids_of, said

from hf_eft import Combination, tiny

one_by_one, batched, served = fixtures()


# Several answers ------------------------------------------------------------------------------------------------------


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


# Log-probabilities ----------------------------------------------------------------------------------------------------


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


# Streams --------------------------------------------------------------------------------------------------------------


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
