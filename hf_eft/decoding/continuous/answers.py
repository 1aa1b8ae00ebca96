"""Where the answers of a batch go, and which requests still wait for one: none is left without."""

from __future__ import annotations

import asyncio
import copy
import queue
from collections.abc import Callable
from typing import Any

from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestState


class BatchEnded(RuntimeError):
    """A request came to a batch that has ended: nobody would answer it."""


class Answers(OutputRouter):
    r"""
    transformers' router of answers, which knows the requests that wait for one.

    A request is open from when it is put into the queue of the batch until its last answer. Whatever the thread of the batch
    does, those that are open when it ends are answered with an error, and those that come later are refused; both under one lock,
    so that none comes in between.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, RequestState] = {}
        self._ended: str | None = None  # why

    def begin(self) -> None:
        """Take requests (again)."""
        with self._lock:
            self._ended = None

    def end(self, reason: str) -> None:
        """Take no more requests, and answer those that are open with an error."""
        with self._lock:
            self._ended, left = reason, list(self._open.values())
        for state in left:
            self.fail_and_deliver(state, BatchEnded(reason))

    def open(self, state: RequestState) -> None:
        r"""
        Take a request, and the forks that it will have, each of which has an answer of its own.

        Raises:
            `BatchEnded`: If the batch has ended.
            `ValueError`: If a request of the same name is open: one of the two would never be answered.
        """
        names = [state.request_id, *(f"{state.request_id}__child#{i}" for i in range(state.num_children))]
        with self._lock:
            if self._ended is not None:
                raise BatchEnded(f"The batch has ended, and takes no more requests: {self._ended}")
            if open_ones := [name for name in names if name in self._open]:
                raise ValueError(f"A request {open_ones[0]!r} waits for its answer already. Give each an id of its own.")
            for name in names:
                fork = copy.copy(state)
                fork.request_id = name
                self._open[name] = state if name == state.request_id else fork

    def is_open(self, state: RequestState) -> bool:
        """Whether a request waits for an answer."""
        with self._lock:
            return self._open.get(state.request_id) is state

    def forget(self, request_id: str) -> None:
        """Nobody waits for this one any more."""
        with self._lock:
            self._open.pop(request_id, None)

    def deliver(self, output: GenerationOutput) -> None:
        """As in transformers, in the order in which answers come, and nothing after a request's last one."""
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """As in transformers: one call into each event loop."""
        calls: dict[asyncio.AbstractEventLoop, list[tuple[Callable[[Any], None], GenerationOutput]]] = {}
        with self._lock:
            for output in outputs:
                if output.request_id not in self._open:
                    continue  # cancelled, or answered when the batch ended
                if output.is_finished():
                    del self._open[output.request_id]
                if (handler := self.result_handlers.get(output.request_id)) is None:
                    self.output_queue.put(output)
                else:
                    calls.setdefault(handler[1], []).append((handler[0], output))
            for loop, its_calls in calls.items():
                _call(loop, its_calls)

    def attach(self, request_id: str, callback: Callable[[Any], None], loop: asyncio.AbstractEventLoop) -> None:
        """Hand a request's answers to `callback`, in `loop`: those that have come already, too."""
        with self._lock:
            self.result_handlers[request_id] = callback, loop
            _call(loop, [(callback, output) for output in self.take(request_id)])

    def take(self, request_id: str) -> list[GenerationOutput]:
        """The answers to a request that are in the common queue, taken out of it."""
        with self.output_queue.mutex:
            waiting = self.output_queue.queue
            own = [output for output in waiting if output.request_id == request_id]
            if own:
                others = [output for output in waiting if output.request_id != request_id]
                waiting.clear()
                waiting.extend(others)
        return own

    def detach(self, request_id: str) -> None:
        """Hand a request's answers to nobody in particular."""
        with self._lock:
            self.result_handlers.pop(request_id, None)


def _call(loop: asyncio.AbstractEventLoop, calls: list[tuple[Callable[[Any], None], GenerationOutput]]) -> None:
    def run() -> None:
        for callback, output in calls:
            callback(output)

    if not calls:
        return
    try:
        loop.call_soon_threadsafe(run)
    except RuntimeError:
        if not loop.is_closed():  # whoever waited in a loop that is closed has gone; the others in the batch have not
            raise


class Intake(queue.Queue[RequestState]):
    """The queue of requests: those that are put into it are open."""

    def __init__(self, maxsize: int, answers: Answers) -> None:
        super().__init__(maxsize)
        self.answers = answers

    def put(self, item: RequestState, block: bool = True, timeout: float | None = None) -> None:
        """As in a queue. Not under the lock of the answers, for which the thread that empties a full queue may wait."""
        self.answers.open(item)
        try:
            super().put(item, block, timeout)
        except BaseException:
            for name in [item.request_id, *(f"{item.request_id}__child#{i}" for i in range(item.num_children))]:
                self.answers.forget(name)
            raise

    def drop_answered(self) -> None:
        """Take out what came as the batch before ended, and was answered then."""
        with self.mutex:
            left = [state for state in self.queue if self.answers.is_open(state)]
            self.queue.clear()
            self.queue.extend(left)
            self.not_full.notify_all()
