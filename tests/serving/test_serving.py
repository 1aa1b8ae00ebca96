"""The server answers the real `openai` client with what `generate` gives, request by request."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from families import build
from served import BOTH, LONG, QUESTION, complete, connect, fixtures, generated, said

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.serving import EFTServer

one_by_one, batched, served = fixtures()
QUESTIONS = tiny.questions()
SHORT = {"max_tokens": 6}


def test_a_completion_is_what_generate_gives(served: Any) -> None:
    model, tokenizer, client = served
    for question in QUESTIONS[:4]:
        assert complete(client, question.prompt) == generated(model, tokenizer, question.prompt)


def test_a_stream_is_what_generate_gives(served: Any) -> None:
    model, tokenizer, client = served
    parts = list(client.completions.create(model="eft", prompt=LONG, max_tokens=12, stream=True))
    assert "".join(part.choices[0].text for part in parts) == generated(model, tokenizer, LONG)
    assert len(parts) > 3


def test_chat_uses_the_template(served: Any) -> None:
    model, tokenizer, client = served
    question = QUESTION
    messages = [{"role": "user", "content": question.text}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    new = model.generate(**ids, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
    expected = tokenizer.decode(new, skip_special_tokens=True)

    answer = client.chat.completions.create(model="eft", messages=messages, max_tokens=12)
    assert answer.choices[0].message.content == expected
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (ids["input_ids"].shape[1], len(new))
    assert answer.usage.total_tokens == ids["input_ids"].shape[1] + len(new)
    parts = list(client.chat.completions.create(model="eft", messages=messages, max_tokens=12, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    assert parts[0].choices[0].delta.role == "assistant" and all(part.usage is None for part in parts)


def test_responses_are_what_generate_gives(served: Any) -> None:
    _, _, client = served
    question = QUESTIONS[1]
    chat = client.chat.completions.create(model="eft", messages=[{"role": "user", "content": question.text}], max_tokens=12)
    response = client.responses.create(model="eft", input=question.text, max_output_tokens=12)
    assert response.output_text == chat.choices[0].message.content
    events = list(client.responses.create(model="eft", input=question.text, max_output_tokens=12, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == response.output_text


def test_the_reason_of_an_end_is_told(served: Any) -> None:
    _, _, client = served
    cut = client.completions.create(model="eft", prompt=LONG, max_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
    assert client.completions.create(model="eft", prompt=QUESTION.prompt, max_tokens=99).choices[0].finish_reason == "stop"


@BOTH
def test_members_do_not_read_token_types(options: dict[str, Any]) -> None:
    tokenizer = tiny.load().tokenizer
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in tokenizer(LONG)
    members = [build("gpt2", seed, vocab_size=len(tokenizer)) for seed in (1, 2, 3)]
    model = EFTForCausalLM.from_models(*members)
    ids = tokenizer(LONG, return_tensors="pt")["input_ids"]
    expected = tokenizer.decode(model.generate(ids, max_new_tokens=6)[0, ids.shape[1] :], skip_special_tokens=True)
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client:
        assert complete(client, LONG, **SHORT) == expected


# Recipes of a request -------------------------------------------------------------------------------------------------

ALPHAS = [-1.5 + i / 8 for i in range(32)]


def steered() -> tuple[EFTForCausalLM, Any]:
    """A model of two behaviours."""
    base, tuned, reference, tokenizer = tiny.load()
    other = copy.deepcopy(tuned)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model = EFTForCausalLM.from_models(
        base, {"helpful": tuned, "harmless": other}, reference, combination=Combination.steer({"helpful": 0.5, "harmless": 0.5})
    )
    return model, tokenizer


def by_row(model: EFTForCausalLM, tokenizer: Any, coefficients: list[torch.Tensor]) -> list[str]:
    """What `generate` says to one prompt with each of several coefficients, `(1, members)`."""
    ids = tokenizer([LONG] * len(coefficients), return_tensors="pt")["input_ids"]
    return said(model, tokenizer, ids, max_new_tokens=6, coefficients=torch.cat(coefficients))


def test_32_requests_at_once_each_with_its_own_alpha(served: Any) -> None:
    model, tokenizer, client = served
    recipes = [Combination.emulate(alpha=alpha).at([0], tuple(model.members)) for alpha in ALPHAS]
    expected = by_row(model, tokenizer, recipes)
    assert len(set(expected)) > 4
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda alpha: complete(client, LONG, **SHORT, extra_body={"alpha": alpha}), ALPHAS))
    assert answers == expected
    assert complete(client, LONG) == generated(model, tokenizer, LONG)  # the model's own combination is as it was


def test_beta_is_the_amplification(served: Any) -> None:
    model, tokenizer, client = served
    row = Combination.emulate(beta=2.5).at([0], tuple(model.members))
    assert complete(client, LONG, extra_body={"beta": 2.5}) == generated(model, tokenizer, LONG, coefficients=row)
    assert complete(client, LONG, extra_body={"beta": 2.5}) != complete(client, LONG, extra_body={"alpha": 2.5})


@BOTH
def test_32_requests_at_once_each_with_its_own_weights(options: dict[str, Any]) -> None:
    model, tokenizer = steered()
    weights = [{"helpful": i / 8, "harmless": 2 - i / 16} for i in range(32)]
    recipes = [Combination.steer(each).at([0], tuple(model.members)) for each in weights]
    expected = by_row(model, tokenizer, recipes)
    assert len(set(expected)) > 4
    with EFTServer(model, tokenizer, port=0, **options) as server, connect(server) as client, ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda each: complete(client, LONG, **SHORT, extra_body={"weights": each}), weights))
        assert answers == expected
        with pytest.raises(openai.BadRequestError, match="tuned"):  # alpha is of one tuned member
            complete(client, LONG, extra_body={"alpha": 1.0})


def test_weights_without_a_base_are_mixed() -> None:
    _, tuned, reference, tokenizer = tiny.load()
    members = {"one": tuned, "two": reference}
    model = EFTForCausalLM.from_models(None, members, combination=Combination.mix({"one": 0.5, "two": 0.5}))
    with EFTServer(model, tokenizer, port=0) as server, connect(server) as client:
        row = torch.tensor([[1.5, -0.5]])
        answer = complete(client, LONG, extra_body={"weights": {"one": 1.5, "two": -0.5}})
        assert answer == generated(model, tokenizer, LONG, coefficients=row)
        row = torch.tensor([[1.5, 0.0]])  # a member that is left out weighs 0; what is left need not sum to 1
        assert complete(client, LONG, extra_body={"weights": {"one": 1.5}}) == generated(
            model, tokenizer, LONG, coefficients=row
        )


# Chance ---------------------------------------------------------------------------------------------------------------


def test_a_seed_is_the_requests_own(one_by_one: Any) -> None:
    model, tokenizer, client = one_by_one
    expected = []
    for seed in range(8):
        torch.manual_seed(seed)
        expected.append(generated(model, tokenizer, LONG, do_sample=True, temperature=1.5, top_p=0.9))
    assert len(set(expected)) > 2
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda s: complete(client, LONG, seed=s, temperature=1.5, top_p=0.9), range(8)))
    assert answers == expected
    after = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        complete(client, LONG, seed=0, temperature=1.5)
        after.append(torch.rand(1).item())
    assert after[0] != after[1]  # what is drawn next does not follow from the seed of the request before
    assert complete(client, LONG, temperature=0) == generated(model, tokenizer, LONG)


def test_requests_of_a_batch_sample_each_in_its_own_way(batched: Any) -> None:
    model, tokenizer, client = batched
    greedy = generated(model, tokenizer, LONG)
    wild = {"temperature": 50.0}  # nearly every token is as likely as any other
    asked: list[dict[str, Any]] = [wild, {"temperature": 0.0}, {"temperature": 5.0, "top_p": 1e-6}, {"temperature": 1e-3}] * 4
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda options: complete(client, LONG, **options), asked))
    assert [answer for answer, options in zip(answers, asked, strict=True) if options is not wild] == [greedy] * 12
    assert len({answer for answer, options in zip(answers, asked, strict=True) if options is wild} - {greedy}) == 4
