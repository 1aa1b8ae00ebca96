"""What a member takes, found out without its weights: it is built and run where tensors have shapes and no values."""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

from ..members.auto import auto_class
from ..members.releases import cache_argument

_STATES = ("keys", "values", "conv_states", "recurrent_states")


@dataclass(frozen=True)
class Shape:
    r"""
    What one model takes.

    Args:
        name (`str`): The member.
        architecture (`str`): Its class.
        dtype (`torch.dtype`): Of its weights and states.
        parameters (`int`): How many there are.
        matrices (`Mapping[int, int]`):
            By number of weights, how many matrices a step multiplies with: all but the table of embeddings, of which it looks up a few
            rows.
        layers (`int`): How many layers it has.
        vocab (`int`): How many logits it returns.
        bits (`float`): Of a weight.
        model (`PreTrainedModel`): The model without values.
    """

    name: str
    architecture: str
    dtype: torch.dtype
    parameters: int
    matrices: Mapping[int, int]
    layers: int
    vocab: int
    bits: float
    model: Any = field(repr=False)
    _found: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, name: str, config: PreTrainedConfig, dtype: torch.dtype | None = None, bits: float | None = None) -> Shape:
        """
        The shape of a model that is made from a configuration.

        Raises:
            `ValueError`: If transformers has no causal language model for it, or it cannot run without values.
        """
        dtype = dtype or config.dtype or torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype  # of a configuration that was made of a dictionary
        try:
            with torch.device("meta"):
                model = auto_class(config).from_config(config, dtype=dtype).eval()
            if getattr(config, "num_experts", getattr(config, "num_local_experts", None)):
                model.set_experts_implementation("batched_mm")  # grouped products need values, or one dtype
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"The member {name!r} cannot be planned: no model can be made of its configuration ({error})."
            ) from error
        parameters = sum(parameter.numel() for parameter in model.parameters())
        tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        heads = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
        looked_up = {id(table) for table in tables} - heads
        matrices: Counter[int] = Counter()
        for parameter in model.parameters():
            if parameter.dim() > 1 and id(parameter) not in looked_up:
                size = parameter.shape[-1] * parameter.shape[-2]
                matrices[size] += parameter.numel() // size
        text = config.get_text_config(decoder=True)
        return cls(
            name, type(model).__name__, dtype, parameters, matrices, text.num_hidden_layers, text.vocab_size,
            8 * dtype.itemsize if bits is None else bits, model,
        )  # fmt: skip

    @property
    def weights(self) -> int:
        """Bytes of its weights."""
        return int(self.parameters * self.bits / 8)

    @property
    def largest_module(self) -> int:
        """Bytes of the largest module that has weights of its own."""
        own = (sum(weight.numel() for weight in module.parameters(recurse=False)) for module in self.model.modules())
        return int(max(own) * self.bits / 8)

    def cache(self, rows: int, length: int) -> int:
        """Bytes of the states of so many rows and tokens."""
        return self._run(rows, length)[0]

    def largest_layer(self, rows: int, length: int) -> int:
        """Bytes of the states of one layer, which a cache that grows holds twice for a moment."""
        return self._run(rows, length)[1]

    def working(self, rows: int, length: int) -> int:
        """Bytes that reading so many new tokens holds at its peak, beside weights and states."""
        return self._run(rows, length)[2]

    def _run(self, rows: int, length: int) -> tuple[int, int, int]:
        if (rows, length) not in self._found:
            self._found[rows, length] = self._without_values(rows, length)
        return self._found[rows, length]

    @torch.no_grad()
    def _without_values(self, rows: int, length: int) -> tuple[int, int, int]:
        cache = DynamicCache(config=self.model.config.get_text_config(decoder=True))
        ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
        given = {str(cache_argument(inspect.signature(self.model.forward).parameters)): cache}
        try:
            with _Live() as live, _Attention():
                out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **given)
                del out
                peak = live.peak - live.bytes_of([tensor for layer in cache.layers for tensor in _tensors_of(layer)])
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"The member {self.name!r} ({self.architecture}) cannot be planned: it does not run without values ({error})."
            ) from error
        by_layer = [sum(tensor.numel() * tensor.element_size() for tensor in _tensors_of(layer)) for layer in cache.layers]
        return sum(by_layer), max(by_layer), max(0, peak)


def _tensors_of(layer: Any) -> list[torch.Tensor]:
    """The states of a layer of a cache."""
    found: list[torch.Tensor] = []
    for name in _STATES:
        value = getattr(layer, name, None)
        found += [each for each in (value.values() if isinstance(value, dict) else [value]) if isinstance(each, torch.Tensor)]
    return found


class _Attention(TorchFunctionMode):
    """Attention as its kernels do it, which hold no scores of every token with every other."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = (args + tuple(kwargs.get(name) for name in ("query", "key", "value")[len(args) :]))[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return function(*args, **kwargs)


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made and still there, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 1  # some look at a value, such as a scale: here there is none
        given = {_place(value) for value in (*args, *(kwargs or {}).values()) if isinstance(value, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor) and (_place(tensor) in self._users or _place(tensor) not in given):
                self._count(tensor)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        place, size = _place(tensor), tensor.untyped_storage().nbytes()
        if place not in self._users:
            self._users[place] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._users[place] += 1
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self.now -= size

    def bytes_of(self, tensors: list[torch.Tensor]) -> int:
        """Of these, each storage once."""
        return sum({_place(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
