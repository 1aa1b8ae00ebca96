"""What belongs to one call lives with that call: not on the model, which other threads may be calling too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .members import Members


@dataclass
class Call:
    r"""
    A running call of `generate`.

    Args:
        model ([`EFTForCausalLM`]): Whose call it is.
        request ([`~hf_eft.decoding.speculative.request.Request`]): What it asked for. Members have no use for it.
        members ([`Members`]): The members, those with a prompt of their own with states of their own.
    """

    model: Any
    request: Any
    members: Members
    pad: int | None = None  # what fills rows that have ended


# One after the other, as they were entered: a call may run another one, of an assistant for example, of the same model even.
_entered: ContextVar[tuple[Call, ...]] = ContextVar("calls", default=())
_running: dict[int, Call] = {}  # of all threads; put in and taken out in one step each, which no other thread comes between


@contextmanager
def entered(call: Call) -> Iterator[Call]:
    """Have a call be the one that is running here, until it is left."""
    before = _entered.get()
    try:
        _entered.set((*before, call))
        _running[id(call)] = call
        yield call
    finally:
        _running.pop(id(call), None)
        _entered.set(before)


def innermost(model: Any) -> Call | None:
    """The call of a model that is running in this thread; of several, the one that was entered last."""
    return next((call for call in reversed(_entered.get()) if call.model is model), None)


def refuse_while_running(model: Any, what: str) -> None:
    """Raise if a call of the model is running, in whatever thread: its text would be of two models."""
    if any(call.model is model for call in tuple(_running.values())):
        raise RuntimeError(f"{what} cannot be replaced while `generate` is running on this model. Wait for the call to end.")


class PerThread(threading.local):
    """A value that every thread has its own of. Copies start without any."""

    value: Any = None

    def __reduce__(self) -> Any:
        return type(self), ()


class Lock(type(threading.RLock())):  # type: ignore[misc]
    """
    A lock that can be copied and pickled along with what it guards: a copy is a lock of its own. It is entered by the interpreter's own
    code, which no interrupt comes between: in Python's, one could come when it is taken and not yet in the hands of `with`.
    """

    def __reduce__(self) -> Any:
        return type(self), ()
