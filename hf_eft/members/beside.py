"""Members on several devices at once: those that work by themselves are given their work, those that are waited for get a thread."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from .devices import execution_device, weights_device


class Place(NamedTuple):
    """Where a model computes, and whether weights are brought there from somewhere else, which is waited for."""

    device: torch.device
    is_brought: bool

    @property
    def is_waited_for(self) -> bool:
        """Whether a call there comes back only when all is done."""
        return self.device.type == "cpu" or self.is_brought


def place_of(model: Any) -> Place:
    """Where a model computes. Of what accelerate offloads, some weights are on `"meta"`, or its map says `"cpu"` or `"disk"`."""
    device = execution_device(model)
    mapped = {str(where) for where in getattr(model, "hf_device_map", {}).values()}
    away = weights_device(model).type == "meta" or "disk" in mapped or ("cpu" in mapped and device.type != "cpu")
    return Place(device, away)


class Beside:
    r"""
    A call that runs in a thread of its own, as it would here: with this thread's context, and with gradients on or off as they are.

    Args:
        call (`Callable[[], Any]`): What to do. Nobody else may change meanwhile what it changes.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call, self._answer = call, None
        self._error: BaseException | None = None
        self._modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._stream: AbstractContextManager[Any] = (
            nullcontext() if accelerator is None else torch.accelerator.current_stream(accelerator)
        )
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._run,), daemon=True)
        self._thread.start()

    def _run(self) -> None:
        grad, inference = self._modes
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad), self._stream:
                self._answer = self._call()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Come back when it is over, whatever comes in between."""
        try:
            self._thread.join()
        except BaseException:
            self._thread.join()
            raise

    def result(self) -> Any:
        """What it answered; raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._answer


class Work(NamedTuple):
    """What members on one model do in a step: `run` answers by name."""

    model: Any
    run: Callable[[], dict[str, Any]]


class Started:
    r"""
    Members that have begun to read. What is begun must be ended, by `outputs` or by `abandon`.

    Args:
        works (`Sequence[Work]`): What they do. Those on one place follow each other.
        then (`Callable[[], None]`): What is done when all have read.
        is_free (`bool`): Whether the calling thread has something else to do meanwhile than to be where one of them works.
    """

    def __init__(self, works: Sequence[Work], then: Callable[[], None], is_free: bool) -> None:
        by_place: dict[Place, list[Work]] = {}
        for work in works:
            by_place.setdefault(place_of(work.model), []).append(work)
        waited = [place for place in by_place if place.is_waited_for]
        beside = waited if is_free else waited[:-1]
        self._then = then
        self._outputs: dict[str, Any] = {}
        self._threads = [Beside(functools.partial(_all, by_place[place])) for place in beside]
        try:
            for place in sorted((each for each in by_place if each not in beside), key=lambda each: each.is_waited_for):
                self._outputs |= _all(by_place[place])
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Wait until nobody reads any more."""
        for thread in self._threads:
            thread.wait()

    def outputs(self) -> dict[str, Any]:
        """What they said, by name."""
        self.abandon()
        for thread in self._threads:
            self._outputs |= thread.result()
        self._then()
        return self._outputs


def _all(works: Sequence[Work]) -> dict[str, Any]:
    return {name: output for work in works for name, output in work.run().items()}
