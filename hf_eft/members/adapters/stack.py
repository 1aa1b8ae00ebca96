"""Members that differ by adapters only, run as one batch: the weights under the adapters are read once a step for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..quantised import looks_beside
from .joint import Joint
from .joint_static import StaticJoint
from .views import Adapted, adapter_modules, replace, view_of, without_adapters

# PEFT's layers that add `lora_B(lora_A(x)) * scaling` to what a linear layer returns, the quantised ones included.
_LINEAR = ("Linear", "Linear4bit", "Linear8bitLt")
_FEW_ROWS = 4

AnyJoint = Joint | StaticJoint


class StackedLinear(nn.Module):
    """A linear layer over the rows of all members, each of which adds its own low-rank part to its own rows."""

    def __init__(self, original: nn.Module, layers: Sequence[Any]) -> None:
        super().__init__()
        self.original = original
        self.adapters = [None if layer is None else _low_rank(layer, _active(layer)) for layer in layers]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = _product(self.original, x)  # (members * rows, ..., features)
        rows = x.shape[0] // len(self.adapters)
        for i, adapter in enumerate(self.adapters):
            if adapter is not None:
                dropout, down, up, scaling = adapter
                part = x.narrow(0, i * rows, rows).to(down.weight.dtype)
                out.narrow(0, i * rows, rows).add_(up(down(dropout(part))), alpha=scaling)
        return out


def _product(linear: Any, x: torch.Tensor) -> torch.Tensor:
    """
    `linear(x)`. On a CPU, MKL takes 1.4 to 2 times as long for two to four float32 rows as for one, which is what members at batch 1 are;
    asked for the transposed product it takes less than for one (`examples/benchmarks/lora.py`).
    """
    few = 1 < x.numel() // x.shape[-1] <= _FEW_ROWS and x.device.type == "cpu" and x.dtype == torch.float32
    if not (few and type(linear) is nn.Linear and linear.weight.dtype == x.dtype) or _is_hooked(linear):
        return linear(x)
    out = torch.mm(linear.weight, x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], -1)
    return out.contiguous() if linear.bias is None else out + linear.bias


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks) or hasattr(module, "_hf_hook")


class StackedModule(nn.Module):
    """A module of which some members have a trained copy."""

    def __init__(self, original: nn.Module, wrappers: Sequence[Any]) -> None:
        super().__init__()
        self.copies = [original if w is None else w.modules_to_save[_active(w)] for w in wrappers]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.chunk(len(self.copies))
        return torch.cat([module(part) for module, part in zip(self.copies, parts, strict=True)])


class Stack:
    """The members that one pass serves: their names, and the model whose batch is theirs, one after the other."""

    def __init__(self, names: tuple[str, ...], member: Any) -> None:
        self.names, self.member = names, member

    def fits(self, caches: Mapping[str, Cache], joint: AnyJoint | None, mask: Any, own: Mapping[str, Any]) -> bool:
        """Whether a step can be run as one pass. (The others are run one after the other, to the same effect.)"""
        if self.member.model.training or any(name in own for name in self.names):
            return False
        # Masks by member are those of static caches, and graphs go on from these.
        if (isinstance(mask, Mapping) or torch.compiler.is_compiling()) and (joint is None or not joint.compiles):
            return False
        return not caches or (joint is not None and joint.holds(self._mine(caches)))

    def joint(self, caches: Mapping[str, Cache]) -> AnyJoint | None:
        """The states of all of them as one batch, to be kept from step to step; `None` where there can be none."""
        mine = self._mine(caches)
        if not any(isinstance(cache, StaticCache) for cache in mine):
            return Joint()
        # Models that do not say that they read from static caches are tried on rows of their own.
        return StaticJoint(mine) if self.member.model._can_compile_fullgraph and StaticJoint.fits(mine) else None

    def forward(
        self,
        *,
        input_ids: torch.Tensor,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        caches: Mapping[str, Cache],
        joint: AnyJoint | None,
        use_cache: bool,
        logits_to_keep: int | torch.Tensor,
    ) -> dict[str, CausalLMOutputWithPast]:
        """One step of all of them; each one's output by name."""
        mine = self._mine(caches) if joint is not None else []
        if joint is not None:
            joint.gather(mine)
        outputs = self.member.forward(
            input_ids=self._tiled(input_ids),
            inputs_embeds=None,
            attention_mask=self._mask(attention_mask),
            position_ids=position_ids if position_ids is None or position_ids.shape[-2] == 1 else self._tiled(position_ids, -2),
            cache=joint.cache if joint is not None else None,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            extra={},
        )
        if joint is not None:
            joint.scatter(mine)
        parts = outputs.logits.chunk(len(self.names))
        return {name: CausalLMOutputWithPast(logits=part) for name, part in zip(self.names, parts, strict=True)}

    def _mine(self, caches: Mapping[str, Cache]) -> list[Cache]:
        return [caches[name] for name in self.names]

    def _mask(self, mask: Any) -> Any:
        """What all of them see: a mask of rows, or what was made of it for each, which is the same for all, maybe by kind of layer."""
        if not isinstance(mask, Mapping):
            return self._tiled(mask)
        made = mask.get(self.names[0])
        return {kind: self._tiled(each) for kind, each in made.items()} if isinstance(made, Mapping) else self._tiled(made)

    def _tiled(self, values: torch.Tensor | None, rows: int = 0) -> torch.Tensor | None:
        """Values as often as there are members, along the dimension of the rows."""
        return None if values is None else torch.cat([values] * len(self.names), dim=rows)


def stacked_model(trunk: PreTrainedModel, views: Mapping[str, PreTrainedModel]) -> PreTrainedModel | None:
    """
    One model whose batch is the members' batches, one after the other. `None` where some adapter cannot work row by row: the members then
    run one after the other, on the same weights.
    """
    by_path: dict[str, list[Any]] = {}
    for i, view in enumerate(views.values()):
        for path, layer in adapter_modules(view):
            if _active(layer) is not None:
                by_path.setdefault(path, [None] * len(views))[i] = layer
    model = view_of(trunk)
    for path, layers in by_path.items():
        original = trunk.get_submodule(path)
        present = [layer for layer in layers if layer is not None]
        if ".experts." in path:  # which rows an expert sees is the router's choice
            return None
        if all(map(_adds_low_rank, present)):
            replace(model, path, StackedLinear(original, layers))
        elif all(map(_is_copy, present)) and isinstance(original, (nn.Linear, nn.Embedding)):
            replace(model, path, StackedModule(original, layers))
        else:
            return None
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and ".experts." not in path and not path.endswith(".original"):
            replace(model, path, StackedLinear(module, [None] * len(views)))
    return model


def _active(layer: Any) -> str | None:
    """The adapter that is on in a module of PEFT, if that module has a part of it."""
    owned = next((getattr(layer, kept) for kept in ("modules_to_save", "r") if hasattr(layer, kept)), layer.active_adapters)
    return next((name for name in layer.active_adapters if name in owned), None)


def _adds_low_rank(layer: Any) -> bool:
    from peft.tuners.lora import LoraLayer

    plain = isinstance(layer, LoraLayer) and type(layer).__name__ in _LINEAR
    return plain and _active(layer) not in layer.lora_variant  # a variant (DoRA, ...) also looks at the weight


def _low_rank(layer: Any, name: Any) -> tuple[nn.Module, Any, nn.Module, float]:
    return layer.lora_dropout[name], layer.lora_A[name], layer.lora_B[name], layer.scaling[name]


def _is_copy(layer: Any) -> bool:
    from peft.utils.other import ModulesToSaveWrapper

    return isinstance(layer, ModulesToSaveWrapper)


def stack_of(
    trunk: PreTrainedModel, members: Mapping[str, Adapted], models: Mapping[str, PreTrainedModel]
) -> tuple[tuple[str, ...], PreTrainedModel] | None:
    """The members over one model that may run as one batch, and the model that runs them; `None` if there are none."""
    views = {name: models[name] for name, member in members.items() if member.trunk is trunk}
    distinct = {name: view for name, view in views.items() if next(n for n in views if views[n] is view) == name}
    if len(distinct) < 2 or looks_beside(trunk):  # in one pass the rows of each would be read beside the other's
        return None
    model = stacked_model(without_adapters(trunk) if hasattr(trunk, "peft_config") else trunk, distinct)
    return None if model is None else (tuple(distinct), model)
