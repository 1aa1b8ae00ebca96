"""Steps of plain decoding on static caches, recorded on a GPU and replayed, without a look at Python in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging
from transformers.utils.output_capturing import capture_outputs

from ..members.cache import EFTCache
from ..members.members import Members
from ..members.releases import CACHE
from .speculative.graphs import Graphs, NotRecorded, records_on
from .speculative.static import can_record

# Outputs that `generate` keeps from step to step: a graph would write the next ones over them.
_KEPT = ("output_attentions", "output_hidden_states")

Path = tuple[str, ...]

logger = logging.get_logger(__name__)


class Replayed:
    r"""
    What `generate` calls for a step, in one call of it. The first step is recorded, and replayed for those that are like it but for the
    values of their tensors; every other is what it would be without this.

    A graph holds numbers, and addresses of tensors. So a step is replayed only if everything else that it is given is what it was: which
    tensors there are, their shapes, types and devices, all that is no tensor, and the cache, its tensors and the members' weights at their
    addresses. Values in tensors (tokens, positions, masks, coefficients, certain tokens, weights changed in place) count at each step.

    Args:
        model ([`EFTForCausalLM`]): Whose step it is.
        members ([`Members`]): Those of the call.
        compiled (`Callable`): What runs a step otherwise.
        graphs ([`~hf_eft.decoding.speculative.graphs.Graphs`]): Records.
    """

    def __init__(self, model: Any, members: Members, compiled: Callable[..., Any], graphs: Graphs) -> None:
        self._model, self._members, self._compiled, self._graphs = model, members, compiled, graphs
        self._models = [member.model for member in members.distinct.values()]
        self._weights = [each for one in self._models for each in (*one.parameters(), *one.buffers())]
        self._recorded: Any = None  # what steps that are replayed are like

    def __call__(self, **inputs: Any) -> Any:
        like = self._like(inputs)
        # One recording in a call: what changes all the time would be recorded all the time.
        if like is None or self._recorded not in (None, like):
            return self._compiled(**inputs)
        self._recorded = like
        try:
            logits = self._logits(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:  # it is no single graph, and nothing of it has run
            said = " ".join(line.strip() for line in str(error).splitlines()[:2])
            return self._otherwise(f"A step could not be compiled as one graph: {said}", inputs)
        except NotRecorded as error:
            return self._otherwise(str(error), inputs)
        # What comes after may keep them, and the next step is written over them.
        return CausalLMOutputWithPast(logits=logits.clone(), **{CACHE: inputs[CACHE]})

    def _otherwise(self, reason: str, inputs: Mapping[str, Any]) -> Any:
        """A step, as are all that follow in this call, without a recording."""
        logger.warning_once(f"{reason.rstrip('.')}. Steps are compiled, and not replayed.")
        self._recorded = False
        return self._compiled(**inputs)

    def _logits(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        cache, parts = inputs[CACHE], list(_parts(inputs))
        tensors = {_name(path): value for path, value in parts if isinstance(value, torch.Tensor)}
        layout = tuple((path, None if isinstance(value, torch.Tensor) else value) for path, value in parts)
        changes = [layer.cumulative_length for layer in _layers(cache)]
        logits: torch.Tensor = self._graphs.run(("step", layout), _step, self._model, cache, layout, changes=changes, **tensors)
        return logits

    def _like(self, inputs: Mapping[str, Any]) -> Any:
        """What a graph of a step would take for given, to be compared; `None` if there can be none."""
        cache, tokens = inputs.get(CACHE), inputs.get("input_ids")
        if not isinstance(cache, EFTCache) or tokens is None or tokens.shape[1] != 1 or any(inputs.get(name) for name in _KEPT):
            return None
        layers = _layers(cache)
        if any(type(layer) is not StaticLayer or not layer.is_initialized for layer in layers):  # others count in Python
            return None
        if any(model.training for model in self._models):
            return None
        given: list[Any] = []
        for path, value in _parts(inputs):
            if isinstance(value, torch.Tensor):
                given.append((path, tuple(value.shape), value.dtype, value.device))
            elif value is None or isinstance(value, (bool, int, float, str)):
                given.append((path, type(value), value))
            else:
                return None
        states = [tensor for layer in layers for tensor in (layer.keys, layer.values, layer.cumulative_length)]
        places = [tensor.data_ptr() for tensor in (*states, *self._weights)]
        return given, id(cache), id(self._model.combination), places


def replayed(model: Any, members: Members, compiled: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """`compiled`, whose steps are replayed where they can be; `options` are those that it was compiled with."""
    each = [member.model for member in members.distinct.values()]
    if not records_on(model.device) or not all(can_record(one, model.device) for one in each):
        return compiled
    if any(map(_is_watched, (model, *each))):
        return compiled
    # Of one piece: what looks at values between two would look once, when it is recorded.
    return Replayed(model, members, compiled, Graphs({**options, "fullgraph": True}, model.device))


def _layers(cache: EFTCache) -> list[Any]:
    return [layer for each in cache.members.values() for layer in each.layers]


def _is_watched(model: torch.nn.Module) -> bool:
    """Whether something is called in the midst of a step, which no graph would call. (What transformers leaves there does nothing.)"""
    hooks = [
        hook
        for module in model.modules()
        for each in (module._forward_hooks, module._forward_pre_hooks)
        for hook in each.values()
    ]
    return any(getattr(hook, "__module__", None) != capture_outputs.__module__ for hook in hooks)


def _parts(inputs: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What a step is given, but for its cache, each by where it is."""
    for key, value in inputs.items():
        if isinstance(value, Mapping):
            yield from _parts(value, (*path, key))
        elif path or key != CACHE:
            yield (*path, key), value


def _name(path: Path) -> str:
    return ".".join(path)


def _step(model: Any, cache: EFTCache, layout: tuple[tuple[Path, Any], ...], **tensors: torch.Tensor) -> torch.Tensor:
    """The logits of a step that is given these."""
    inputs: dict[str, Any] = {CACHE: cache}
    for path, value in layout:
        at = inputs
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = tensors.get(_name(path), value)
    logits: torch.Tensor = model(**inputs).logits
    return logits
