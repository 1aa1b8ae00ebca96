"""Steps of fixed shapes, compiled once, and on a GPU recorded as graphs that are replayed without the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

# Each model, each set of members and each shape compiles the same few functions anew.
_VERSIONS = 256

# Modes that record graphs of their own, which wait for guards in Python at every step, and what each asks for besides.
_RECORDING: dict[Any, str | None] = {"reduce-overhead": None, "max-autotune": "max-autotune-no-cudagraphs"}

_one_at_a_time = threading.Lock()  # recordings, of all threads


class Graphs:
    r"""
    Runs functions of tensors that stay where they are.

    Args:
        options (`Mapping[str, Any]`): For `torch.compile`.
        device (`torch.device`): Where they run. On a GPU, what was compiled is recorded as a CUDA graph, for each shape one.
    """

    def __init__(self, options: Mapping[str, Any], device: torch.device) -> None:
        mode = options.get("mode")
        self.options = {**options, "mode": _RECORDING.get(mode, mode)} if records_on(device) else dict(options)
        self.records, self._answers_anew = records_on(device), device.type == "cpu" and not records_on(device)
        self._recorded: dict[Hashable, Recorded] = {}
        self._compiled: dict[Hashable, Callable[..., Any]] = {}  # by what has run, which is compiled
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def run(
        self,
        key: Hashable,
        function: Callable[..., Any],
        *fixed: Any,
        changes: Sequence[torch.Tensor] = (),
        **inputs: torch.Tensor,
    ) -> Any:
        r"""
        Call `function(*fixed, **inputs)`. What it answers is valid until it is called again with inputs of these shapes.

        Args:
            key (`Hashable`): What of the fixed arguments changes from call to call.
            function (`Callable`): A function of this module's users, not a closure: it is compiled once in a process.
            fixed: Objects whose tensors stay where they are.
            changes (`Sequence[torch.Tensor]`): What the function writes to that a second call would go on from.
            inputs (`torch.Tensor`): Tensors which may be others at the next call; `tokens`, `(rows, n)`, of any length.
        """
        shapes = (key, function, *(tuple(tensor.shape) for tensor in inputs.values()))
        if (recorded := self._recorded.get(shapes)) is not None:
            return recorded(inputs)
        if (compiled := self._compiled.get(shapes)) is not None:
            return compiled(*fixed, **_of_any_length(inputs))
        compiled = _compiled(function, self.options)
        with torch._dynamo.config.patch(recompile_limit=_VERSIONS, accumulated_recompile_limit=8 * _VERSIONS):
            if self.records:
                recorded = self._recorded[shapes] = Recorded(compiled, fixed, inputs, changes, self._pool)
                return recorded(inputs)
            answer = compiled(*fixed, **_of_any_length(inputs))
        self._compiled[shapes] = compiled
        return answer

    def kept(self, answer: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """An answer that outlives the next call: a graph of an accelerator answers in one place, the CPU in a new one."""
        return dict(answer) if self._answers_anew else {name: each.clone() for name, each in answer.items()}


class NotRecorded(RuntimeError):
    """Something in a function cannot be part of a graph. Nothing has changed."""


class Recorded:
    """A CUDA graph of a function, its inputs and its answer."""

    def __init__(
        self,
        function: Callable[..., Any],
        fixed: tuple[Any, ...],
        inputs: Mapping[str, torch.Tensor],
        changes: Sequence[torch.Tensor],
        pool: Any,
    ) -> None:
        self._inputs = _of_any_length({name: tensor.clone() for name, tensor in inputs.items()})
        before = [tensor.clone() for tensor in changes]

        def run() -> Any:
            return function(*fixed, **self._inputs)

        with _one_at_a_time:
            with _aside():  # libraries set themselves up in the first runs, which no graph may hold
                for _ in range(2):
                    _restore(changes, before)  # behind a full cache there is no place to write to
                    run()
            _restore(changes, before)
            try:
                self._replay, self._answer = _captured(run, pool)
            except RuntimeError as error:  # while it is recorded, nothing is run
                raise NotRecorded(f"A step could not be recorded as a graph: {error}") from error

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._replay()
        return self._answer


def records_on(device: torch.device) -> bool:
    """Whether what is compiled is recorded as graphs that are replayed."""
    return device.type == "cuda"


@contextmanager
def _aside() -> Iterator[None]:
    """On a stream of its own."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        yield
    torch.cuda.current_stream().wait_stream(beside)


def _captured(run: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
    """What replays a function, which is not run here, and where it will answer."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads may wait for the GPU meanwhile
        answer = run()
    return graph.replay, answer


def _restore(changes: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> None:
    for tensor, value in zip(changes, before, strict=True):
        tensor.copy_(value)


def _of_any_length(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same: a compiled function shall not depend on how many tokens there are, if they are more than one."""
    tokens = inputs.get("tokens")
    if tokens is not None and tokens.shape[1] > 1:
        torch._dynamo.maybe_mark_dynamic(tokens, 1)
    return dict(inputs)


_COMPILED: dict[tuple[Callable[..., Any], str], Callable[..., Any]] = {}


def _compiled(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    key = function, repr(sorted(options.items(), key=str))
    if key not in _COMPILED:
        _COMPILED[key] = torch.compile(function, **options)
    return _COMPILED[key]
