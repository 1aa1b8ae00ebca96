"""Something else that is done in the middle of a call, in a thread of its own or within the call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor


def caught(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        return error


def in_thread(action: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(caught(action)))
    thread.start()
    thread.join()
    return results[0]


class Meanwhile(LogitsProcessor):
    """Has something else done before a step, from start to end, in a thread of its own or in this one."""

    is_stateless = True  # what it answers

    def __init__(self, at: int, action: Callable[[], Any], thread: bool = True) -> None:
        self.left, self.action, self.thread = at, action, thread
        self.results: list[Any] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            run = lambda: self.results.append(caught(self.action))  # noqa: E731
            if self.thread:
                other = threading.Thread(target=run)
                other.start()
                other.join()
            else:
                run()
        return scores
