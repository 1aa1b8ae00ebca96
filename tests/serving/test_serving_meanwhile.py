"""While pictures of one request are read, others are answered."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from lookers import Pictures, combination, data_url, picture, processor
from seeing import PLACES
from served import connect

from hf_eft.serving import EFTServer

FAILS = 60.0  # seconds after which what would wait forever is given up; nothing waits for them that goes on


def test_others_are_answered_while_pictures_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, answered = threading.Event(), threading.Event()
    plain = Pictures.__call__

    def slow(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("images"):
            reading.set()
            answered.wait(FAILS)
        return plain(self, *args, **options)

    def ask(client: Any, *parts: Any) -> str:
        said = [{"type": "text", "text": "w20 w21"}, *parts]
        chat = client.chat.completions.create(
            model="eft", messages=[{"role": "user", "content": said}], max_tokens=4,
            extra_body={"generation_config": {"suppress_tokens": PLACES}},
        )  # fmt: skip
        return str(chat.choices[0].message.content)

    model = combination(*["qwen2_vl"] * 3)
    shown = {"type": "image_url", "image_url": {"url": data_url(picture(1))}}
    with EFTServer(model, processor("qwen2_vl"), port=0) as server, connect(server) as client, ThreadPoolExecutor(1) as pool:
        alone = ask(client), ask(client, shown)
        monkeypatch.setattr(Pictures, "__call__", slow)
        waits = pool.submit(ask, client, shown)
        try:
            assert reading.wait(FAILS)
            patient = client.with_options(timeout=FAILS / 4, max_retries=0)
            assert [each.id for each in patient.models.list()] == ["eft"]
            assert ask(patient) == alone[0] and not waits.done()
        finally:
            answered.set()
        assert waits.result(FAILS) == alone[1] != alone[0]
