"""What a trainer wrote, used as anybody would use it: served to an OpenAI client, and drafted for."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openai import APIConnectionError, OpenAI

from hf_eft import tiny

_NEW_TOKENS = 24


def served(delta: Path, alpha: float, asked: Sequence[tiny.Question]) -> dict[str, Any]:
    r"""
    Serve base, delta and reference by the command, and ask.

    Args:
        delta (`Path`): What the trainer wrote.
        alpha (`float`): The strength.
        asked (`Sequence[tiny.Question]`): What is asked.

    Returns:
        `dict`: How many were asked, how many of the answers have the fact and the style, and one of them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "hf-eft"), "serve", "--base", str(tiny.path("base")), "--tuned", str(delta),
        "--reference", str(tiny.path("reference")), "--alpha", str(alpha), "--port", str(port),
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        _wait(client, server)
        replies = []
        for question in asked:
            messages: Any = [{"role": "user", "content": question.text}]
            reply = client.chat.completions.create(model="eft", messages=messages, max_tokens=_NEW_TOKENS, temperature=0)
            replies.append(str(reply.choices[0].message.content))
    finally:
        server.terminate()
        server.wait()
    pairs = list(zip(asked, replies, strict=True))
    return {
        "asked": len(pairs),
        "right": sum(q.is_right(r) for q, r in pairs),
        "in style": sum(q.is_in_style(r) for q, r in pairs),
        "first": f"{asked[0].text} {replies[0].strip()}",
    }


def _wait(client: OpenAI, server: subprocess.Popen[bytes], seconds: int = 300) -> None:
    for _ in range(seconds):
        if server.poll() is not None:
            raise RuntimeError(f"The server ended with {server.returncode}.")
        try:
            client.models.list()
            return
        except APIConnectionError:
            time.sleep(1)
    raise TimeoutError(f"The server did not answer within {seconds} s.")


def drafted(model: Any, tokenizer: Any, asked: Sequence[tiny.Question]) -> dict[str, Any]:
    """Whether the tokens are those of plain decoding if the small combination drafts, and how many of its tokens were accepted."""
    same, proposed, accepted = 0, 0, 0
    for question in asked:
        inputs = tokenizer(question.prompt, return_tensors="pt", return_token_type_ids=False)
        plain = model.generate(**inputs, max_new_tokens=_NEW_TOKENS)
        ids = model.generate(
            **inputs, max_new_tokens=_NEW_TOKENS, assistant_model=model.small_combination, num_assistant_tokens=4
        )
        same += int(plain.tolist() == ids.tolist())
        proposed += sum(model.speculation.drafted)
        accepted += sum(model.speculation.accepted)
    return {"asked": len(asked), "same tokens": same, "accepted of drafted": round(accepted / proposed, 3)}
