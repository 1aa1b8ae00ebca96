"""Streams whose client is slower than the models: each event is of what was told until then."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("fastapi")

from served import fixtures

from hf_eft.serving.endpoint import Run

one_by_one, batched, served = fixtures()
PROMPT = "Question: Tell me all about it.\nAnswer:"
BODIES: dict[str, Any] = {
    "completions": {"prompt": PROMPT},
    "chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
}


def events(client: Any, path: str) -> list[Any]:
    body = json.dumps({"model": "eft", "stream": True, "max_tokens": 8, "temperature": 0, **BODIES[path]}).encode()
    request = urllib.request.Request(f"{client.base_url}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        lines = answer.read().decode().splitlines()
    return [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize("path", BODIES)
def test_an_end_is_told_once_and_last(served: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the answer had ended before the client was told of its first token."""
    _, _, client = served
    expected, told = events(client, path), Run.told

    async def late(self: Any) -> Any:
        waiting = [each async for each in told(self)]
        assert all(answer.finish for answer in self.answers) and len(waiting) > 2
        for each in waiting:
            yield each

    monkeypatch.setattr(Run, "told", late)
    found = events(client, path)
    assert found == expected
    assert [each["finish_reason"] is not None for each in found] == [False] * (len(found) - 1) + [True]


def test_answers_do_not_wait_to_be_acknowledged(served: Any) -> None:
    """Head and body of an answer are two packets: the second must not wait until the client has acknowledged the first."""
    _, _, client = served
    opened: list[int] = []
    plain = socket.socket.accept

    def accepted(self: socket.socket) -> Any:
        connection, address = plain(self)
        opened.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return connection, address

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket.socket, "accept", accepted)
        events(client, "completions")
    assert opened and all(opened)
