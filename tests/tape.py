"""A stand-in for the graphs of an accelerator: it runs on the CPU what it has recorded, on the memory that it was recorded on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import CompileConfig, PreTrainedModel

from hf_eft.decoding import replayed
from hf_eft.decoding.speculative import graphs


class Tape(TorchDispatchMode):
    """Notes each operation on tensors, and where it wrote to. Replayed, it knows nothing of what Python does meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("While a graph is captured, nobody can look at a value.")
        if func._schema.is_mutable:
            for each in tensors((args, kwargs)):
                self.before.setdefault(id(each), (each, each.clone()))
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        """What is captured is not run."""
        for tensor, value in self.before.values():
            tensor.copy_(value)

    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor written in place
                    old.copy_(new)


def tensors(values: Any) -> list[torch.Tensor]:
    return [each for each in tree_flatten(values)[0] if isinstance(each, torch.Tensor)]


class Counts:
    """How many steps were recorded, replayed, and run as they are without graphs."""

    def __init__(self) -> None:
        self.recorded = self.replayed = self.otherwise = 0


@contextmanager
def taped() -> Iterator[Counts]:
    """Have what runs here be recorded and replayed as on an accelerator. Nothing is compiled: a function is what it says."""
    counts = Counts()

    def captured(run: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
        with Tape() as tape:
            answer = run()
        tape.undo()
        for each in tensors(answer):
            each.fill_(torch.nan)  # nothing has been answered yet
        counts.recorded += 1

        def replay() -> None:
            counts.replayed += 1
            tape.replay()

        return replay, answer

    def traced(function: Callable[..., Any], options: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(torch.compiler, "is_compiling", lambda: True)  # it is traced: no value is looked at
                return function(*args, **kwargs)

        return run

    def otherwise(model: Any, config: Any) -> Callable[..., Any]:
        def run(**inputs: Any) -> Any:
            counts.otherwise += 1
            return model(**inputs)

        return run

    with pytest.MonkeyPatch.context() as patched:
        for module in (graphs, replayed):
            patched.setattr(module, "records_on", lambda device: True)
        patched.setattr(graphs, "_captured", captured)
        patched.setattr(graphs, "_aside", nullcontext)
        patched.setattr(graphs, "_compiled", traced)
        patched.setattr(PreTrainedModel, "get_compiled_call", otherwise)
        yield counts


def static() -> dict[str, Any]:
    """Options of `generate` with which an accelerator would record."""
    config = CompileConfig(mode=None)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}
