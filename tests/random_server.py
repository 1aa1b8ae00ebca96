"""The server's app without a socket, over small random members, and what every answer of it must be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import torch
from families import build
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from random_bodies import CHATS, COMPLETIONS, RESPONSES, Request
from served import BATCHED

from hf_eft import EFTForCausalLM, tiny
from hf_eft.serving import EFTServer

BOUND = 900  # seconds until an answer that does not come is taken for one that never will: a busy machine is slow
_FINISHED = {"stop", "length", "tool_calls"}


def small(kind: str) -> tuple[EFTForCausalLM, Any]:
    """Members of one layer that read the embedded family's tokens, and few of them: an answer without a limit ends soon."""
    tokenizer = tiny.load().tokenizer
    size = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "max_position_embeddings": 96}
    members = [build(kind, seed, **size) for seed in range(3)]
    return EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2]), tokenizer


class Served:
    r"""
    One app, which is asked without a socket.

    Args:
        kind (`str`): The family of the members. That of "llama" writes text and nothing else; "qwen3" has thoughts and calls in it.
        batched (`bool`): Whether requests are batched continuously.
    """

    def __init__(self, kind: str, batched: bool) -> None:
        self.kind, self.batched = kind, batched
        self.model, self.tokenizer = small(kind)
        self.twin, _ = small(kind)  # `generate` is asked of another object: the server's own runs on a thread of its own
        self._server = EFTServer(self.model, self.tokenizer, port=0, **(BATCHED if batched else {}))
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(self._server._server.config.app)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://served")

    def ask(self, request: Request) -> httpx.Response:
        """The answer, whole."""
        asked = self._client.request(
            request.method, request.path, content=request.data, headers={"content-type": "application/json"}
        )
        return self._runner.run(asyncio.wait_for(asked, BOUND))

    def close(self) -> None:
        """End. What is still open is given up."""
        self._runner.run(self._client.aclose())
        self._runner.close()
        self._server.stop()

    # What must come back ----------------------------------------------------------------------------------------------

    def check(self, request: Request) -> int:
        """Ask, and raise `AssertionError` unless the answer is one that may be. Returns its status."""
        answer = self.ask(request)
        assert answer.status_code < 500, answer.text
        if answer.status_code == 307:  # a slash too many: where it is without
            assert answer.headers["location"].endswith(request.path.rstrip("/")), answer.headers
        elif answer.status_code != 200:
            if request.method != "HEAD":
                _check_error(json.loads(answer.content))
        elif answer.headers["content-type"].startswith("text/event-stream"):
            self._check_stream(request, answer.content.decode())
        elif request.method == "POST":
            self._check_whole(request, json.loads(answer.content))
        if request.plain:
            self._check_plain(request, answer)
        return answer.status_code

    def _check_whole(self, request: Request, content: dict[str, Any]) -> None:
        {CHATS: ChatCompletion, COMPLETIONS: Completion, RESPONSES: Response}[request.path].model_validate(content)
        if request.path == RESPONSES:
            assert content["status"] in ("completed", "incomplete"), content
            return
        assert [choice["index"] for choice in content["choices"]] == list(range(len(content["choices"])))
        assert {choice["finish_reason"] for choice in content["choices"]} <= _FINISHED, content
        usage = content["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

    def _check_stream(self, request: Request, text: str) -> None:
        events = _events(text)
        failed = [event for event in events if event is not None and "error" in event and "type" not in event]
        for event in failed:  # an error behind the first event; it must be one that the request caused
            _check_error(event)
            assert event["error"]["type"] != "server_error", event
        if request.path == RESPONSES:
            last = events[-2] if failed else events[-1]
            assert failed or last["type"] in ("response.completed", "response.incomplete"), events
            assert [event["sequence_number"] for event in events if event and "type" in event] == [
                *range(len(events) - 2 * len(failed))
            ]
            return
        assert events[-1] is None, "the stream has no end"
        kind = {CHATS: ChatCompletionChunk, COMPLETIONS: Completion}[request.path]
        told, ended = set(), set()
        for event in events[:-1]:
            if event in failed:
                continue
            for choice in event["choices"]:
                told.add(choice["index"])
                if choice["finish_reason"] is not None:
                    assert choice["index"] not in ended, "an answer ends twice"
                    ended.add(choice["index"])
                elif kind is Completion:
                    choice["finish_reason"] = "stop"  # OpenAI's own streams have null there, and its type does not say so
            kind.model_validate(event)
        assert failed or told == ended, "an answer has no end"

    def _check_plain(self, request: Request, answer: httpx.Response) -> None:
        """The texts are those of `generate`, cut at the first stop string."""
        body = dict(request.body)
        own = body.get("generation_config", {})
        if self.batched and answer.status_code == 400:
            reason = answer.json()["error"]["message"]
            assert ("num_beams" in own and "batched continuously" in reason) or self._too_long(reason), reason
            return
        stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop", [])
        expected = self._expected(request.path, body, own)
        if answer.status_code == 400:
            reason = answer.json()["error"]["message"]
            assert expected is None or self._too_long(reason) or self._beams(own, body, reason), reason
            return
        assert expected is not None, "`generate` refuses what the server answered"
        cut = [min([text.find(stop) for stop in stops if stop and stop in text], default=None) for text in expected]
        wanted = [text if end is None else text[:end] for text, end in zip(expected, cut, strict=True)]
        told = _told(request.path, answer)
        assert told == wanted, (told, wanted)

    def _expected(self, path: str, body: dict[str, Any], own: dict[str, Any]) -> list[str] | None:
        prompt = body["prompt"] if path == COMPLETIONS else None
        if prompt is None:
            made = self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        else:
            made = self.tokenizer(prompt, return_tensors="pt")
        ids, new = made["input_ids"], body.get("max_tokens", body.get("max_completion_tokens"))
        if ids.shape[1] == 0 or ids.shape[1] + new > 96:
            return None
        alpha, beta = body.get("alpha", 1.0), body.get("beta")
        coefficients = [[1.0, alpha, -alpha]] if beta is None else [[beta, 1.0, -beta]]
        count = body.get("n", 1)
        beams = own.get("num_beams", 1)
        try:
            rows = self.twin.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                coefficients=torch.tensor(coefficients),
                do_sample=False,
                max_new_tokens=new,
                num_return_sequences=count if beams > 1 else 1,
                **own,
            )
        except ValueError:
            return None
        texts = [self.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in rows]
        return texts if beams > 1 else texts * count

    def _too_long(self, reason: str) -> bool:
        return "too long" in reason or "are more than the" in reason or "has no tokens" in reason

    def _beams(self, own: dict[str, Any], body: dict[str, Any], reason: str) -> bool:
        return own.get("num_beams", 1) > 1 and body.get("n", 1) > own["num_beams"] and "num_return_sequences" in reason


def _check_error(content: Any) -> None:
    assert set(content) == {"error"} and set(content["error"]) == {"message", "type", "param", "code"}, content
    assert isinstance(content["error"]["message"], str) and content["error"]["message"], content


def _events(text: str) -> list[Any]:
    """What a stream told; `None` is its end."""
    assert text.endswith("\n\n"), text[-80:]
    events: list[Any] = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        data = next(line for line in block.split("\n") if line.startswith("data: ")).removeprefix("data: ")
        events.append(None if data == "[DONE]" else json.loads(data))
    return events


def _told(path: str, answer: httpx.Response) -> list[str]:
    """The texts of an answer or of a stream."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        choices = answer.json()["choices"]
        return [choice["message"]["content"] if path == CHATS else choice["text"] for choice in choices]
    texts: dict[int, str] = {}
    for event in _events(answer.text)[:-1]:
        for choice in event["choices"]:
            said = choice["delta"].get("content") or "" if path == CHATS else choice["text"]
            texts[choice["index"]] = texts.get(choice["index"], "") + said
    return [texts[index] for index in sorted(texts)]


@contextmanager
def all_ways() -> Iterator[list[Served]]:
    """Both families, each served one by one and batched."""
    made: list[Served] = []
    try:
        for kind in ("llama", "qwen3"):
            for batched in (False, True):
                made.append(Served(kind, batched))
        yield made
    finally:
        for each in made:
            each.close()
