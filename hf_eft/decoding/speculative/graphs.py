"""Steps of fixed shapes, compiled once, and on a GPU recorded as graphs that are replayed without the CPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch

# Each model, each set of members and each shape compiles the same few functions anew.
_VERSIONS = 256


class Graphs:
    r"""
    Runs functions of tensors that stay where they are.

    Args:
        options (`Mapping[str, Any]`): For `torch.compile`.
        device (`torch.device`): Where they run. On a GPU, what was compiled is recorded as a CUDA graph, for each shape one.
    """

    def __init__(self, options: Mapping[str, Any], device: torch.device) -> None:
        # What `mode` would record are graphs of its own, which wait for guards in Python at every step.
        self.options = {**options, "mode": None} if device.type == "cuda" else dict(options)
        self.records, self._answers_anew = device.type == "cuda", device.type == "cpu"
        self._recorded: dict[Hashable, Recorded] = {}
        self._compiled: dict[Hashable, Callable[..., Any]] = {}  # by what has run, which is compiled
        self._pool = torch.cuda.graph_pool_handle() if self.records else None

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
            inputs (`torch.Tensor`): Tensors of two dimensions which may be others at the next call, and of any length.
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
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # libraries set themselves up in the first runs, which no graph may hold
            for _ in range(2):
                function(*fixed, **self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        for tensor, value in zip(changes, before, strict=True):
            tensor.copy_(value)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._answer = function(*fixed, **self._inputs)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
        return self._answer


def _of_any_length(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, of whose length, if it is more than 1, a compiled function shall not depend."""
    for tensor in inputs.values():
        if tensor.shape[1] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 1)
    return dict(inputs)


_COMPILED: dict[tuple[Callable[..., Any], str], Callable[..., Any]] = {}


def _compiled(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    key = function, repr(sorted(options.items(), key=str))
    if key not in _COMPILED:
        _COMPILED[key] = torch.compile(function, **options)
    return _COMPILED[key]
