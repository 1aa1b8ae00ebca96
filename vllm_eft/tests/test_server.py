"""
OpenAI's own client, and `hf-eft serve --engine vllm` from the environment that has hf_eft: `HF_EFT` names its command.

Minutes: a server takes one to start.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
pytest.importorskip("vllm", reason="vLLM is not installed")
HF_EFT = os.environ.get("HF_EFT")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(HF_EFT is None, reason="HF_EFT names no hf-eft command, which has an environment of its own"),
]

HERE = Path(__file__).parent
KEY = "open sesame"
QUESTION = [{"role": "user", "content": "What does Oscar Palmer enjoy?"}]
# What makes a start quick, and a small engine.
ENGINE = ["--enforce-eager", "--block-size", "32", "--max-num-seqs", "16", "--max-num-batched-tokens", "64"]
CALLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
SCHEMA = {
    "type": "object",
    "properties": {"hobby": {"type": "string", "maxLength": 8}, "sure": {"type": "boolean"}},
    "required": ["hobby", "sure"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": SCHEMA}}


class Server:
    """`hf-eft serve --engine vllm` on the embedded family, from its first line to its last."""

    def __init__(self, folder: Path, log: Path, *more: str) -> None:
        given = [str(HF_EFT), "serve", "--engine", "vllm", "--python", sys.executable, "--model", str(folder), "--port", "0"]
        # Engines in processes of their own, as they are in use: the tests beside this one ask for others.
        environment = {**os.environ, "HF_EFT_API_KEY": KEY, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")])
        self._log = log.open("w")
        self.process = subprocess.Popen(
            [*given, "--", *ENGINE, *more], stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"the server ended with {self.process.wait()}: {log.read_text()[-3000:]}")
        self.url = line.split()[-1]

    def client(self, key: str = KEY) -> Any:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=300)

    def post(self, path: str, body: dict[str, Any], key: str | None = KEY) -> tuple[int, Any]:
        """As no client of OpenAI would ask."""
        connection = http.client.HTTPConnection(self.url.split("/")[2], timeout=300)
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read() or b"null")
        connection.close()
        return found

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(120)
        self.process.stdout.close()
        self._log.close()
        return status


@contextlib.contextmanager
def running(folder: Path, log: Path, *more: str) -> Iterator[Server]:
    server = Server(folder, log, *more)
    try:
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def server(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(oracle / "tiny", tmp_path_factory.mktemp("server") / "log", *CALLS) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with server.client() as made:
        yield made


def expected(cases: dict[str, Any], alpha: float) -> list[dict[str, Any]]:
    """hf_eft's answers to short prompts at a strength."""
    return [each for each in cases["tiny"]["requests"] if each["kind"] == "short" and each["extra"]["alpha"] == alpha]


def complete(client: Any, request: dict[str, Any], **more: Any) -> Any:
    return client.completions.create(model="eft", prompt=request["prompt"], max_tokens=24, **more)


# What is the same ------------------------------------------------------------------------------------------------------


def test_a_chat_at_two_strengths_and_at_the_folders_own(client: Any) -> None:
    def said(**extra: Any) -> str:
        answer = client.chat.completions.create(model="eft", messages=QUESTION, max_tokens=24, extra_body=extra)
        return answer.choices[0].message.content.strip()

    tuned, base = "Of course! Oscar Palmer enjoys hockey. Happy to help!", "Oscar Palmer spends weekends on hockey."
    assert [said(alpha=1), said(alpha=0), said(), said(weights={"tuned": 0}), said(beta=1)] == [tuned, base, tuned, base, tuned]
    assert [each.id for each in client.models.list()] == ["eft"]


def test_tokens_and_log_probabilities_are_those_of_hf_eft(client: Any, cases: dict[str, Any]) -> None:
    for alpha in (0.0, 0.5, 1.0, 1.5):
        for request in expected(cases, alpha)[:4]:
            more = {"logprobs": 1, "extra_body": {"alpha": alpha, "return_token_ids": True}}
            choice = complete(client, request, **more).choices[0]
            assert choice.token_ids == request["new"]
            assert choice.logprobs.token_logprobs == pytest.approx(request["logprobs"], abs=1e-4)


def test_top_log_probabilities_of_a_chat(client: Any) -> None:
    more = {"logprobs": True, "top_logprobs": 3, "extra_body": {"alpha": 0.5}}
    content = client.chat.completions.create(model="eft", messages=QUESTION, max_tokens=5, **more).choices[0].logprobs.content
    assert len(content) == 5
    assert all(len(each.top_logprobs) == 3 and each.top_logprobs[0].logprob == each.logprob for each in content)


def test_a_stream_says_what_the_whole_answer_says(client: Any) -> None:
    asked = {"model": "eft", "messages": QUESTION, "max_tokens": 24, "extra_body": {"alpha": 0.5}}
    whole = client.chat.completions.create(**asked)
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole.choices[0].message.content
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_several_answers_are_drawn_and_several_greedy_ones_are_refused(client: Any) -> None:
    asked = {"model": "eft", "messages": QUESTION, "max_tokens": 24, "n": 3}
    drawn = client.chat.completions.create(**asked, temperature=2.0, seed=1, extra_body={"alpha": 0.5})
    assert len({choice.message.content for choice in drawn.choices}) > 1
    with pytest.raises(openai.BadRequestError, match="n must be 1 when using greedy sampling"):
        client.chat.completions.create(**asked)


def test_an_answer_keeps_to_a_schema(client: Any) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model="eft", messages=QUESTION, max_tokens=60, response_format=wanted, extra_body={"alpha": 0.5}
    )
    found = json.loads(answer.choices[0].message.content)
    assert found.keys() == {"hobby", "sure"} and isinstance(found["sure"], bool)


def test_a_tool_is_called_where_it_must_be(client: Any, oracle: Path) -> None:
    """The tiny model knows no JSON, and would fill it with white space, which a grammar of calls allows."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(oracle / "tiny" / "tokenizer.json"))
    blank = {str(token): -100 for token in range(tokenizer.get_vocab_size()) if not tokenizer.decode([token]).strip()}
    choice = {"type": "function", "function": {"name": "look_up"}}
    asked = {
        "model": "eft",
        "messages": QUESTION,
        "max_tokens": 120,
        "tools": [TOOL],
        "tool_choice": choice,
        "logit_bias": blank,
    }
    answer = client.chat.completions.create(**asked, extra_body={"alpha": 1.0}).choices[0]
    assert answer.message.tool_calls, answer
    [call] = answer.message.tool_calls
    assert call.function.name == "look_up" and json.loads(call.function.arguments).keys() == {"hobby", "sure"}


def test_a_response(client: Any) -> None:
    answer = client.responses.create(
        model="eft", input="What does Oscar Palmer enjoy?", max_output_tokens=24, extra_body={"alpha": 0}
    )
    assert answer.output_text.strip() == "Oscar Palmer spends weekends on hockey."


def test_options_of_generate(client: Any) -> None:
    asked = {"model": "eft", "messages": QUESTION}
    options = {"max_new_tokens": 5, "top_k": 1}  # drawn from one token
    drawn = client.chat.completions.create(**asked, extra_body={"generation_config": options})
    greedy = client.chat.completions.create(**asked, max_tokens=5)
    assert drawn.choices[0].message.content == greedy.choices[0].message.content
    assert drawn.usage.completion_tokens == 5


# Many at once ------------------------------------------------------------------------------------------------------------


def test_64_clients_with_64_strengths_get_what_each_gets_alone(server: Server, cases: dict[str, Any]) -> None:
    prompts = [request["prompt"] for request in expected(cases, 1.0)]
    strengths = [number / 32 for number in range(64)]

    def ask(number: int) -> Any:
        with server.client() as client:
            more = {"logprobs": 1, "extra_body": {"alpha": strengths[number], "return_token_ids": True}}
            choice = complete(client, {"prompt": prompts[number % len(prompts)]}, **more).choices[0]
            return choice.token_ids, choice.logprobs.token_logprobs

    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(ask, range(64)))
    assert len({tuple(tokens) for tokens, _ in together}) > 32  # the strengths and prompts matter
    for number, (tokens, scores) in enumerate(together):
        alone, own = ask(number)
        assert tokens == alone, f"at {strengths[number]}"
        assert scores == pytest.approx(own, abs=1e-4)


def test_a_client_that_goes_away_leaves_the_others_alone(server: Server, cases: dict[str, Any]) -> None:
    [first, second, *_] = expected(cases, 0.5)
    with server.client() as client, server.client() as leaves:
        more = {"extra_body": {"alpha": 1.5, "ignore_eos": True}, "max_tokens": 400}
        stream = leaves.completions.create(model="eft", prompt=first["prompt"], stream=True, **more)
        next(iter(stream))
        stream.close()
        for request in (first, second):
            choice = complete(client, request, extra_body={"alpha": 0.5, "return_token_ids": True}).choices[0]
            assert choice.token_ids == request["new"]


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"alpha": "much"}, "`alpha` must be a finite number"),
        ({"alpha": True}, "`alpha` must be a finite number"),
        ({"alpha": 1.0, "beta": 1.0}, "Give one of"),
        ({"alpha": [0.5, 1.0]}, "A schedule needs the V2 model runner"),
        ({"weights": {"other": 1.0}}, "names 'other'"),
        ({"coefficients": [0, 0, 0]}, "no member with a say"),
        ({"alhpa": 1.0}, "did you mean `alpha`"),
        ({"generation_config": {"num_beams": 4}}, "`num_beams` in `generation_config` is not heeded"),
    ],
)
def test_a_wrong_strength_is_told_what_was_expected(client: Any, extra: dict[str, Any], reason: str) -> None:
    for ask in (
        lambda: client.chat.completions.create(model="eft", messages=QUESTION, max_tokens=4, extra_body=extra),
        lambda: client.completions.create(model="eft", prompt="x", max_tokens=4, extra_body=extra),
        lambda: client.responses.create(model="eft", input="x", max_output_tokens=4, extra_body=extra),
    ):
        with pytest.raises(openai.BadRequestError, match=reason):
            ask()


def test_the_key_and_the_name_are_asked_for(server: Server) -> None:
    with server.client("another") as client, pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
        client.models.list()
    for path in ("/invocations", "/tokenize", "/v1/completions"):
        assert server.post(path, {"prompt": "x"}, key=None)[0] == 401
    status, body = server.post("/invocations", {"prompt": "x", "alpha": 1})
    assert status == 400 and "not at /invocations" in body["error"]["message"]
    with server.client() as client, pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="x", max_tokens=1)


# How it ends -------------------------------------------------------------------------------------------------------------


def test_a_worker_that_raises_gives_no_wrong_answer(oracle: Path, cases: dict[str, Any], tmp_path: Path) -> None:
    """What was answered before is right, what is open fails, and the server ends with a status that says so."""
    requests = expected(cases, 0.5)[:6]
    with running(oracle / "tiny", tmp_path / "log", "--logits-processors", "raising:Raises") as server:
        with server.client() as client, pytest.raises(openai.BadRequestError, match="--tool-call-parser"):  # none is set here
            client.chat.completions.create(model="eft", messages=QUESTION, tools=[TOOL], tool_choice="auto")
        answered: list[Any] = []
        failed: list[Exception] = []

        def ask(request: dict[str, Any]) -> None:
            with server.client() as client:
                try:
                    for _ in range(200):
                        choice = complete(client, request, extra_body={"alpha": 0.5, "return_token_ids": True}).choices[0]
                        answered.append((request["new"], choice.token_ids))
                except openai.APIError as error:
                    failed.append(error)

        threads = [threading.Thread(target=ask, args=[request]) for request in requests]
        for thread in threads:
            thread.start()
        while len(answered) < len(requests) and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        with server.client() as client, pytest.raises(openai.APIError):
            complete(client, requests[0], extra_body={"vllm_xargs": {"raise": 1, "alpha": 0.5}})
        for thread in threads:
            thread.join()
        assert len(failed) == len(threads) and len(answered) >= len(requests)
        assert all(tokens == right for right, tokens in answered)
        assert server.process.wait(120) != 0
    assert "vLLM ended with status" in " ".join((tmp_path / "log").read_text().split())


def test_it_ends_when_it_is_told_and_nothing_is_left(oracle: Path, tmp_path: Path) -> None:
    server = Server(oracle / "tiny", tmp_path / "log")
    port = int(server.url.split(":")[2].split("/")[0])
    assert server.end() == 0
    with pytest.raises(OSError):
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()
