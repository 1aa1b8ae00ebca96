"""The server answers the real `openai` client with what `generate` gives, request by request."""

from __future__ import annotations

import copy
import itertools
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from families import build
from served import BATCHED, BOTH, complete, connect, family, fixtures, generated, post
from transformers.generation.continuous_batching.scheduler import Scheduler

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.decoding.continuous.paged import PagedMembers
from hf_eft.serving import EFTServer, serve

one_by_one, batched, served = fixtures()

QUESTIONS = tiny.questions()
LONG = "Question: Tell me all about it.\nAnswer: Of course! "
SHORT = {"max_tokens": 6}
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
    question = QUESTIONS[0]
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
    assert client.completions.create(model="eft", prompt=QUESTIONS[0].prompt, max_tokens=99).choices[0].finish_reason == "stop"


def test_32_requests_at_once_each_with_its_own_alpha(served: Any) -> None:
    model, tokenizer, client = served
    recipes = [Combination.emulate(alpha=alpha).at([0], tuple(model.members)) for alpha in ALPHAS]
    expected = [generated(model, tokenizer, LONG, max_new_tokens=6, coefficients=row) for row in recipes]
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
    expected = [generated(model, tokenizer, LONG, max_new_tokens=6, coefficients=row) for row in recipes]
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


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"extra_body": {"alpha": 1.0, "beta": 1.0}}, "Give one of"),
        ({"extra_body": {"alpha": 1.0, "weights": {"tuned": 1.0}}}, "Give one of"),
        ({"extra_body": {"alpha": "strong"}}, "alpha.*valid number"),
        ({"extra_body": {"alpha": True}}, "alpha.*valid number"),
        ({"extra_body": {"alpha": [1.0, 2.0]}}, "alpha.*valid number"),
        ({"extra_body": {"weights": {"polite": 1.0}}}, "no tuned members 'polite' to weight, but 'tuned'"),
        ({"extra_body": {"weights": {"base": 1.0}}}, "tuned members"),
        ({"extra_body": {"weights": {}}}, "at least 1"),
        ({"extra_body": {"gamma": 1.0}}, "gamma"),
        ({"extra_body": {"generation_config": "{"}}, "generation_config"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ""}, "no tokens"),
        ({"prompt": [1, 10**6]}, "must be from 0 to"),
    ],
    ids=str,
)
def test_bad_requests_are_told_why_and_the_server_lives_on(served: Any, options: dict[str, Any], reason: str) -> None:
    model, tokenizer, client = served
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=reason):
            complete(client, **{"prompt": LONG, "stream": stream, **options})
    assert complete(client, LONG) == generated(model, tokenizer, LONG)


def test_numbers_that_are_none_are_refused(served: Any) -> None:
    _, _, client = served
    numbers = {b"NaN": b"NaN is no JSON", b"Infinity": b"Infinity is no JSON", b"1e999": b"too large"}
    for name, number in itertools.product((b"alpha", b"temperature", b"frequency_penalty"), numbers):
        body = b'{"model": "eft", "prompt": "a", "' + name + b'": ' + number + b"}"
        with pytest.raises(urllib.error.HTTPError, match="400") as raised:
            post(f"{client.base_url}completions", body)
        assert numbers[number] in raised.value.read()
        raised.value.close()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"model": "eft"}', b"`messages`"),
        (b'{"messages": [{"content": "a"}]}', b"messages[0]: `role`"),
        (b'{"messages": [{"role": "user", "content": 1}]}', b"messages[0]: `content`"),
        (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": 1}', b"logit_bias"),
        (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"a": 1}}', b"ids of tokens"),
        (b'{"messages": [{"role": "judge", "content": "a"}]}', b"judge"),
    ],
    ids=str,
)
def test_bad_chats_are_refused(served: Any, body: bytes, reason: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer, client = served
    strict = "{% for m in messages %}{% if m.role == 'judge' %}{{ raise_exception('no ' + m.role) }}{% endif %}a{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", strict)
    with pytest.raises(urllib.error.HTTPError, match="400") as raised:
        post(f"{client.base_url}chat/completions", body)
    assert reason in raised.value.read()
    raised.value.close()


def test_errors_while_generating_are_answered(one_by_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = one_by_one

    def fail(**inputs: Any) -> None:
        raise ValueError('this "cannot" be done')

    with monkeypatch.context() as patched:
        patched.setattr(model, "generate", fail)
        with pytest.raises(openai.BadRequestError, match='this "cannot" be done'):
            complete(client, LONG)
        with pytest.raises(openai.BadRequestError, match='this "cannot" be done'):
            list(client.completions.create(model="eft", prompt=LONG, max_tokens=12, stream=True))
    assert complete(client, LONG) == generated(model, tokenizer, LONG)


def test_a_client_that_goes_away_does_not_stop_the_others(one_by_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = one_by_one
    expected = generated(model, tokenizer, LONG)
    gone, given_up = threading.Event(), threading.Event()
    forward, generate = model.forward, model.generate

    def wait_at_the_second_token(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] == 1:
            assert gone.wait(60)
        return forward(*args, **kwargs)

    def watched(**inputs: Any) -> Any:
        sequences = generate(**inputs)
        if sequences.shape[1] < inputs["input_ids"].shape[1] + inputs["generation_config"].max_new_tokens - 60:
            given_up.set()
        return sequences

    monkeypatch.setattr(model, "forward", wait_at_the_second_token)
    monkeypatch.setattr(model, "generate", watched)
    stream = client.completions.create(
        model="eft", prompt=LONG, max_tokens=90, stream=True, extra_body={"generation_config": '{"eos_token_id": [-1]}'}
    )
    next(iter(stream))
    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(complete, client, LONG) for _ in range(4)]
        stream.close()
        gone.set()
        assert [other.result() for other in others] == [expected] * 4
    assert given_up.wait(60)


def test_a_client_that_leaves_the_batch_does_not_stop_the_others(batched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = batched
    expected = generated(model, tokenizer, LONG)
    cancelled = threading.Event()
    clear = Scheduler.clear_cancelled_requests

    def watched(self: Any) -> Any:
        states = clear(self)
        if states:
            cancelled.set()
        return states

    monkeypatch.setattr(Scheduler, "clear_cancelled_requests", watched)
    with ThreadPoolExecutor(4) as threads:
        endless = {"generation_config": '{"eos_token_id": [-1]}'}
        stream = client.completions.create(model="eft", prompt=LONG, max_tokens=110, stream=True, extra_body=endless)
        next(iter(stream))
        others = [threads.submit(complete, client, LONG) for _ in range(4)]
        stream.close()
        assert [other.result() for other in others] == [expected] * 4
    assert cancelled.wait(60)


def test_requests_of_a_batch_sample_each_in_its_own_way(batched: Any) -> None:
    model, tokenizer, client = batched
    greedy = generated(model, tokenizer, LONG)
    wild = {"temperature": 50.0}  # nearly every token is as likely as any other
    asked: list[dict[str, Any]] = [wild, {"temperature": 0.0}, {"temperature": 5.0, "top_p": 1e-6}, {"temperature": 1e-3}] * 4
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda options: complete(client, LONG, **options), asked))
    assert [answer for answer, options in zip(answers, asked, strict=True) if options is not wild] == [greedy] * 12
    assert len({answer for answer, options in zip(answers, asked, strict=True) if options is wild} - {greedy}) == 4


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seed": 1, "temperature": 1.0}, "seed"),
        ({"max_tokens": 10**6}, "more than the"),
        ({"extra_body": {"generation_config": '{"num_beams": 2}'}}, "num_beams"),
        ({"extra_body": {"generation_config": '{"max_time": 2}'}}, "max_time"),
        ({"extra_body": {"generation_config": '{"cache_implementation": "static"}'}}, "cache_implementation"),
    ],
    ids=str,
)
def test_what_a_batch_cannot_do_is_refused(batched: Any, options: dict[str, Any], reason: str) -> None:
    model, tokenizer, client = batched
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=reason):
            complete(client, LONG, **{"stream": stream, **options})
    assert complete(client, LONG) == generated(model, tokenizer, LONG)


def test_a_model_that_cannot_be_batched_is_refused_at_the_start() -> None:
    model, tokenizer = family(combination=Combination.emulate(alpha=[1.0, 0.5]))
    with pytest.raises(NotImplementedError, match="schedule"):
        EFTServer(model, tokenizer, port=0, continuous_batching=True)
    with pytest.raises(ValueError, match="continuous_batching=True"):
        EFTServer(model, tokenizer, port=0, max_batch=4)
    with pytest.raises(ValueError, match="1 or more"):
        EFTServer(model, tokenizer, port=0, continuous_batching=True, max_batch=0)


def test_the_one_model_is_listed_and_no_other_can_be_loaded(served: Any) -> None:
    _, _, client = served
    assert [model.id for model in client.models.list()] == ["eft"]
    root = str(client.base_url).removesuffix("v1/")
    assert urllib.request.urlopen(f"{root}health").read() == b'{"status":"ok"}'
    for path in ("load_model", "reset", "v1/systemone", "v1/audio/transcriptions"):
        with pytest.raises(urllib.error.HTTPError, match="404") as raised:
            post(root + path, b'{"model": "another"}')
        raised.value.close()


def test_a_key_is_asked_for() -> None:
    model, tokenizer = family()
    with EFTServer(model, tokenizer, port=0, api_key="sésame", model_name="mine") as server:
        assert urllib.request.urlopen(f"{server.url}/health").read() == b'{"status":"ok"}'
        with connect(server, api_key="wrong") as client, pytest.raises(openai.AuthenticationError, match="API key"):
            client.models.list()
        headers = {"Authorization": "Bearer sésame".encode().decode("latin-1")}
        assert b"mine" in urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/models", headers=headers)).read()


def test_an_open_address_without_a_key_is_warned_of() -> None:
    model, tokenizer = family()
    with pytest.warns(UserWarning, match="negative weights"):
        server = EFTServer(model, tokenizer, host="0.0.0.0", port=0)
    server.stop()


def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_eft.serving.is_serve_available", lambda: False)
    with pytest.raises(ImportError, match=r"hf-eft\[serve\]"):
        EFTServer(*family(), port=0)


def test_members_that_fail_are_told_one_by_one(one_by_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = one_by_one

    def fail(*args: Any, **kwargs: Any) -> None:
        raise FloatingPointError("The member 'tuned' returned NaN")

    with monkeypatch.context() as patched:
        patched.setattr(model._members, "step", fail)
        with pytest.raises(openai.InternalServerError, match="'tuned' returned NaN"):
            complete(client, LONG)
    assert complete(client, LONG) == generated(model, tokenizer, LONG)


def test_members_that_fail_end_the_batch_and_the_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise FloatingPointError("The member 'tuned' returned NaN")

    monkeypatch.setattr(PagedMembers, "__call__", fail)
    with EFTServer(*family(), port=0, **BATCHED) as server, connect(server) as client:
        with pytest.raises(openai.InternalServerError, match="503"):
            complete(client, LONG)
        with pytest.raises(openai.InternalServerError, match="503"):
            complete(client, LONG)
        with pytest.raises(urllib.error.HTTPError, match="503") as raised:
            urllib.request.urlopen(f"{server.url}/health")
        raised.value.close()


def test_a_taken_port_is_told() -> None:
    model, tokenizer = family()
    with EFTServer(model, tokenizer, port=0) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="Choose another"):
            EFTServer(model, tokenizer, port=port)
        with pytest.raises(RuntimeError, match="started before"):
            server.start()


def test_serve_blocks_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import uvicorn

    model, tokenizer = family()

    def interrupted(self: Any, sockets: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    before = set(threading.enumerate())
    serve(model, tokenizer, port=0)
    assert "Serving 'eft' at http://127.0.0.1:" in capsys.readouterr().out
    assert set(threading.enumerate()) <= before  # those of other tests may end
