"""Faults for the tests: what may fail, where, and how to see that nothing is left of it."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from hf_eft.members import call

MEMORY_OF_THE_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
ERRORS: dict[str, BaseException] = {
    "interrupt": KeyboardInterrupt(),
    "memory of an accelerator": torch.OutOfMemoryError("simulated"),
    "memory of the CPU": RuntimeError(MEMORY_OF_THE_CPU),
    "an error": ArithmeticError("simulated"),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks", "_forward_hooks_with_kwargs")


def fingerprint(*models: Any) -> dict[str, Any]:
    """Everything of models that a call may not change, and what of a call may not be left behind."""
    found: dict[str, Any] = {}
    for i, model in enumerate(models):
        values = hashlib.sha256()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            values.update(f"{name} {tensor.dtype} {tensor.device} {tensor.requires_grad} {id(tensor)}".encode())
            values.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else b"")
        found[f"{i} values"] = values.hexdigest()
        found[f"{i} modules"] = [
            (
                name,
                module.training,
                [len(getattr(module, kept, ())) for kept in _HOOKS],
                sorted(module.__dict__),
                getattr(module, "disable_adapters", None),
                getattr(module, "active_adapters", None) if hasattr(module, "active_adapter") else None,
            )
            for name, module in model.named_modules()
        ]
        found[f"{i} settings"] = model.config.to_dict(), model.generation_config.to_dict()
        if hasattr(model, "members"):
            found[f"{i} recipe"] = model.combination
            found[f"{i} members"] = {name: id(member) for name, member in model.members.items()}
            for name, member in model.members.items():
                settings = member.config.to_dict(), member.generation_config.to_dict()
                found[f"{i} settings of {name}"] = settings
    found["calls"] = dict(call._running), call._entered.get()
    found["grad"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    found["threads"] = {thread.name for thread in threading.enumerate()}
    return found


def count(owner: Any, name: str, action: Callable[[], Any]) -> int:
    """How often something is called meanwhile."""
    calls = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return plain(*args, **kwargs)

    plain = getattr(owner, name)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, functools.wraps(plain)(counted))
        action()
    return calls[0]


@contextmanager
def failing(owner: Any, name: str, at: int, error: BaseException, after: bool = False) -> Iterator[None]:
    """Have something raise an error when it is called for the `at`-th time, before it does anything or after."""
    left = [at]

    def fails(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        result = plain(*args, **kwargs) if left[0] or after else None
        if left[0] == 0:
            raise error
        return result

    plain = getattr(owner, name)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, functools.wraps(plain)(fails))
        yield


class FailingProcessor(LogitsProcessor):
    """Raises at its call number `at`."""

    is_stateless = True

    def __init__(self, at: int, error: BaseException) -> None:
        self.left, self.error = at, error

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return scores


class FailingCriterion(StoppingCriteria):
    """Raises at its call number `at`."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.left, self.error = at, error

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class FailingStreamer(BaseStreamer):
    """Raises at its token number `at`, the prompt being the first."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.left, self.error = at, error

    def put(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def end(self) -> None:
        """Comes to nothing."""


def options(kind: str, at: int, error: BaseException) -> dict[str, Any]:
    """What `generate` is given to fail."""
    made: Mapping[str, Callable[[], dict[str, Any]]] = {
        "processor": lambda: {"logits_processor": [FailingProcessor(at, error)]},
        "criterion": lambda: {"stopping_criteria": [FailingCriterion(at, error)]},
        "streamer": lambda: {"streamer": FailingStreamer(at, error)},
    }
    return made[kind]()
