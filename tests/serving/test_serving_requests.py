"""What clients send that is wrong, odd, or not heeded: every answer is JSON in OpenAI's form, and nothing is dropped in silence."""

from __future__ import annotations

import copy
import json
import logging
import threading
import urllib.error
import urllib.request
from typing import Any

import openai
import pytest
import torch
from served import BATCHED, CHAT, QUESTION, complete, connect, family, fixtures, generated

from hf_eft.decoding.continuous import BatchEnded
from hf_eft.serving import EFTServer
from hf_eft.serving.bodies import IGNORED, ChatBody, CompletionBody, ResponseBody, read_body

one_by_one, batched, served = fixtures()

CHATS, COMPLETIONS, RESPONSES = "v1/chat/completions", "v1/completions", "v1/responses"


def ask(url: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    """The status, and the JSON of an answer, whatever it is."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def root(client: Any) -> str:
    return str(client.base_url).removesuffix("v1/")


# Errors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "method", "status", "reason"),
    [
        ("v1/embeddings", {"input": "a"}, None, 404, "nothing at /v1/embeddings"),
        ("", None, None, 404, "nothing at /"),
        (CHATS, None, "GET", 405, "does not take GET"),
        ("v1/models", {}, "POST", 405, "does not take POST"),
        (CHATS, b"{", None, 400, "no JSON"),
        (CHATS, b"", "POST", 400, "no JSON"),
        (CHATS, b"\xff\xfe\xfd", None, 400, "no JSON"),
        (CHATS, b"[" * 100_000, None, 400, "no JSON"),
        (CHATS, b"[1]", None, 400, "JSON object"),
        (CHATS, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, 400, "no character"),
        (COMPLETIONS, b'{"prompt": "\\ud800"}', None, 400, "surrogates"),
        (COMPLETIONS, b'{"prompt": "a", "\\ud800": 1}', None, 400, "no parameter"),
        (COMPLETIONS, {"prompt": []}, None, 400, "prompt"),
        (COMPLETIONS, {"prompt": [[1, 2], []]}, None, 400, "no tokens"),
        (COMPLETIONS, {"prompt": "a", "model": "other"}, None, 404, "called 'eft'"),
        (CHATS, {"messages": CHAT, "tools": [1]}, None, 400, "tools.0"),
        (CHATS, {"messages": CHAT, "tools": [{"type": "magic"}]}, None, 400, 'of the type "function"'),
        (CHATS, {"messages": CHAT, "tools": [{"type": "function", "function": {}}]}, None, 400, "a function with a `name`"),
        (CHATS, {"messages": CHAT, "tool_choice": "required"}, None, 400, "there are no `tools`"),
        (CHATS, {"messages": CHAT, "tool_choice": {"type": "magic"}}, None, 400, "`tool_choice` must be"),
        (CHATS, {"messages": CHAT, "chat_template_kwargs": {"tokenize": False}}, None, 400, "'tokenize' is not"),
        (CHATS, {"messages": CHAT, "max_tokens": 3, "max_completion_tokens": 4}, None, 400, "give one of them"),
        (CHATS, {"messages": CHAT, "response_format": {"type": "yaml"}}, None, 400, "response_format.type"),
        (CHATS, {"messages": CHAT, "response_format": {"type": "json_schema"}}, None, 400, "needs a `schema`"),
        (RESPONSES, {"input": [1]}, None, 400, "input[0] must be an object"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "a"}]}, None, 400, "'item_reference'"),
        (RESPONSES, {"input": "a", "generation_config": {"num_beams": 2, "num_return_sequences": 2}}, None, 400, "one answer"),
    ],
    ids=str,
)  # fmt: skip
def test_errors_are_json(one_by_one: Any, path: str, body: Any, method: str | None, status: int, reason: str) -> None:
    _, _, client = one_by_one
    got, answer = ask(root(client) + path, body, method)
    assert (got, set(answer["error"])) == (status, {"message", "type", "param", "code"})
    assert reason in answer["error"]["message"]


def test_an_error_that_nobody_foresaw_is_json_too(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, client = served

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("whatever")

    with monkeypatch.context() as patched:
        patched.setattr(type(tokenizer), "__call__", fail)
        status, answer = ask(f"{root(client)}{COMPLETIONS}", {"prompt": "a"})
    assert (status, answer["error"]["message"], answer["error"]["type"]) == (500, "whatever", "server_error")
    assert complete(client, QUESTION.prompt) == generated(model, tokenizer, QUESTION.prompt)


def test_an_error_within_a_stream_is_an_event_and_the_stream_ends(one_by_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, client = one_by_one
    forward = model.forward

    def fail_at_the_third_token(*args: Any, **kwargs: Any) -> Any:
        fail_at_the_third_token.calls += 1  # type: ignore[attr-defined]
        if fail_at_the_third_token.calls == 3:  # type: ignore[attr-defined]
            raise FloatingPointError('"NaN"')
        return forward(*args, **kwargs)

    fail_at_the_third_token.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", fail_at_the_third_token)
    data = json.dumps({"prompt": QUESTION.prompt, "stream": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{root(client)}{COMPLETIONS}", data)) as answer:
        events = answer.read().decode().strip().split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == '"NaN"'
    assert events[-1] == "data: [DONE]" and len(events) == 4


# Parameters -------------------------------------------------------------------------------------------------------------


def test_what_changes_no_token_is_ignored_with_a_line_in_the_log(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, _, client = served
    body = {"messages": CHAT, "max_tokens": 3}
    plain = ask(f"{root(client)}{CHATS}", body)[1]["choices"]
    with caplog.at_level(logging.WARNING, "hf_eft.serving"):
        assert ask(f"{root(client)}{CHATS}", {**body, **dict.fromkeys(IGNORED, "a")})[1]["choices"] == plain
    assert all(f"Ignored in a request: {name!r}" in caplog.text for name in IGNORED)


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody, ResponseBody])
def test_every_parameter_of_openais_is_heeded_ignored_or_refused_by_name(kind: Any) -> None:
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat_params
    from openai.types.responses import response_create_params

    theirs = {
        ChatBody: chat_params.CompletionCreateParamsStreaming,
        CompletionBody: completion_create_params.CompletionCreateParamsStreaming,
        ResponseBody: response_create_params.ResponseCreateParamsStreaming,
    }
    names = theirs[kind].__mutable_keys__
    assert len(names) > 15
    unknown = names - kind.model_fields.keys() - kind.refused.keys() - set(IGNORED)
    for name in unknown:  # what came after this was written is refused by name as well
        with pytest.raises(ValueError, match=name):
            read_body(kind, {name: 1})
    assert unknown <= {"access_programs", "background_options", "context_management", "image"}
    for name, (nothing, remedy) in kind.refused.items():
        with pytest.raises(ValueError, match=f"`{name}` is not heeded here"):
            read_body(kind, {name: "something"})
        assert remedy
        needed = {"messages": CHAT, "prompt": "a", "input": "a"}
        own = {key: value for key, value in needed.items() if key in kind.model_fields}
        for value in nothing:
            assert read_body(kind, {**own, name: value})


def test_null_is_absent(served: Any) -> None:
    _, _, client = served
    everything = dict.fromkeys([*ChatBody.model_fields, *ChatBody.refused, *IGNORED])
    status, answer = ask(f"{root(client)}{CHATS}", {**everything, "messages": CHAT, "max_tokens": 12})
    assert status == 200
    assert answer["choices"] == ask(f"{root(client)}{CHATS}", {"messages": CHAT, "max_tokens": 12})[1]["choices"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"temprature": 3}, "did you mean 'temperature'"),
        ({"return_dict_in_generate": True}, "only text is returned"),
        ("[1]", "JSON object"),
        ("{", "`generation_config`"),
        ({"num_beams": "two"}, "`num_beams` must be a number"),
        ({"max_new_tokens": 3}, "Give one of them"),
        ({"temperature": 0.5, "do_sample": False}, "`do_sample` is false"),
        ({"stop_strings": 3}, "each of `stop_strings`"),
        ({"stop_strings": [""]}, "an empty text"),
        ({"max_length": 2}, "say `max_new_tokens`"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"length_penalty": 2.0}, "is for beams"),
        ({"forced_eos_token_id": "a"}, "generation_config"),
    ],
    ids=str,
)
def test_options_of_generate_are_checked(served: Any, config: Any, reason: str) -> None:
    _, _, client = served
    body = {"prompt": QUESTION.prompt, "max_tokens": 12, "generation_config": config}
    status, answer = ask(f"{root(client)}{COMPLETIONS}", body)
    assert status == 400 and reason in answer["error"]["message"]


def test_options_of_generate_belong_where_they_are_said_to_belong(served: Any) -> None:
    model, tokenizer, client = served
    with pytest.raises(openai.BadRequestError, match="put it into `generation_config`"):
        complete(client, QUESTION.prompt, extra_body={"top_k": 5})
    with pytest.raises(openai.BadRequestError, match="did you mean `temperature`"):
        complete(client, QUESTION.prompt, extra_body={"temprature": 1})
    options = {"generation_config": {"max_new_tokens": 2}}
    limited = client.completions.create(model="eft", prompt=QUESTION.prompt, extra_body=options)
    assert limited.usage.completion_tokens == 2
    stopped = complete(client, QUESTION.prompt, extra_body={"generation_config": {"stop_strings": ["course"]}})
    assert stopped == generated(model, tokenizer, QUESTION.prompt).split("course")[0]


def test_top_p_alone_draws(one_by_one: Any) -> None:
    model, tokenizer, client = one_by_one
    torch.manual_seed(5)
    expected = generated(model, tokenizer, QUESTION.prompt, do_sample=True, top_p=0.99)
    assert complete(client, QUESTION.prompt, top_p=0.99, seed=5) == expected
    assert complete(client, QUESTION.prompt, top_p=1.0) == generated(model, tokenizer, QUESTION.prompt)


# Messages ---------------------------------------------------------------------------------------------------------------


def test_what_a_client_dumps_is_read_again(served: Any) -> None:
    _, _, client = served
    said = client.chat.completions.create(model="eft", messages=CHAT, max_tokens=12).choices[0].message
    plain = [*CHAT, {"role": "assistant", "content": said.content}, *CHAT]
    expected = client.chat.completions.create(model="eft", messages=plain, max_tokens=12).choices[0].message.content
    for dumped in (said.model_dump(), {**plain[1], "tool_calls": None}, {**plain[1], "tool_calls": [], "name": None}):
        again = client.chat.completions.create(model="eft", messages=[*CHAT, dumped, *CHAT], max_tokens=12)
        assert again.choices[0].message.content == expected
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION.text}]}]
    first = client.chat.completions.create(model="eft", messages=parts, max_tokens=12).choices[0].message.content
    assert first == said.content


def test_the_developer_is_the_system_where_a_template_knows_no_other() -> None:
    model, tokenizer = family()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role not in ('system', 'user') %}{{ raise_exception('no ' + m.role) }}{% endif %}"
        "{{ 'a ' * m.role | length }} {{ m.content }} {% endfor %}"
    )
    messages = [{"role": "developer", "content": "Be brief."}, *CHAT]
    asked = {"model": "eft", "max_tokens": 12}
    with EFTServer(model, tokenizer, port=0) as server, connect(server) as client:
        expected = client.chat.completions.create(messages=[{**messages[0], "role": "system"}, messages[1]], **asked)
        assert client.chat.completions.create(messages=messages, **asked).choices == expected.choices
        tokenizer.chat_template = tokenizer.chat_template.replace("'user'", "'user', 'developer'")
        other = client.chat.completions.create(messages=messages, **asked)
        assert other.usage.prompt_tokens != expected.usage.prompt_tokens  # one that knows the role writes it


def test_a_template_that_fails_is_an_answer(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer, client = served
    for template in ("{{ messages[0].nothing.more }}", "{{ 1 / 0 }}", "{% if %}", "{{ messages + 1 }}"):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        status, answer = ask(f"{root(client)}{CHATS}", {"messages": CHAT})
        assert status == 400 and "does not take these messages" in answer["error"]["message"]
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert "no chat template" in ask(f"{root(client)}{CHATS}", {"messages": CHAT})[1]["error"]["message"]


def test_one_model_is_told_of(served: Any) -> None:
    _, _, client = served
    assert client.models.retrieve("eft").id == "eft"
    with pytest.raises(openai.NotFoundError, match="no model 'a/b'"):
        client.models.retrieve("a/b")


# Batches that end -------------------------------------------------------------------------------------------------------


def test_a_request_that_a_batch_does_not_take_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = family()
    with EFTServer(model, tokenizer, port=0, **BATCHED) as server, connect(server) as client:
        manager = server._generator._manager  # type: ignore[attr-defined]

        def full(*args: Any, **kwargs: Any) -> None:
            raise BatchEnded("no more")

        monkeypatch.setattr(manager, "add_request", full)
        with pytest.raises(openai.InternalServerError, match="503"):
            complete(client, QUESTION.prompt)
        assert not manager.output_router.result_handlers


def test_a_request_to_a_batch_that_ends_without_a_word_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = family()
    monkeypatch.setattr("hf_eft.serving.batched._POLL", 0.01)
    with EFTServer(model, tokenizer, port=0, **BATCHED) as server, connect(server, timeout=20) as client:
        manager = server._generator._manager  # type: ignore[attr-defined]
        server._server.force_exit = True  # whoever was not answered is not waited for
        monkeypatch.setattr(manager, "add_request", lambda *args, **kwargs: "taken")  # and lost
        monkeypatch.setattr(manager, "is_running", lambda: False)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="503"):
                complete(client, QUESTION.prompt, stream=stream)
        monkeypatch.undo()


def test_a_stop_that_comes_to_nothing_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = family()
    monkeypatch.setattr("hf_eft.serving.batched._POLL", 0.01)
    server = EFTServer(model, tokenizer, port=0, **BATCHED).start()
    manager = server._generator._manager  # type: ignore[attr-defined]
    status = manager.background_thread_status
    request, said = status.request_stop, []

    def lost_at_first(*args: Any, **kwargs: Any) -> None:
        said.append(args)
        if len(said) > 3:
            request(*args, **kwargs)

    monkeypatch.setattr(status, "request_stop", lost_at_first)
    stopping = threading.Thread(target=server.stop, daemon=True)
    stopping.start()
    stopping.join(20)
    ended = not stopping.is_alive()
    request(status.FLUSH_AND_STOP, 0)  # whatever was found, the thread ends
    assert ended and not manager.is_running()
    server.stop()  # may be called twice


# The command line -------------------------------------------------------------------------------------------------------


def test_the_command_has_defaults_for_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from hf_eft.cli import app

    told: dict[str, Any] = {}
    monkeypatch.setattr("hf_eft.serving.serve", lambda model, tokenizer, **options: told.update(options))
    given = ["serve", "--port", "0", "--generation-config"]
    assert CliRunner().invoke(app, [*given, '{"repetition_penalty": 1.2, "temperature": 0.5}']).exit_code == 0
    assert told["generation_config"] == {"repetition_penalty": 1.2, "temperature": 0.5, "do_sample": True}
    monkeypatch.setattr("hf_eft.cli.models.Models.load", lambda self: pytest.fail("models were loaded"))
    for wrong in ("{", "[1]", '{"temprature": 1}'):
        done = CliRunner().invoke(app, [*given, wrong])
        assert done.exit_code == 2 and "--generation-config" in done.output
