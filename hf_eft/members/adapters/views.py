"""Views of a model: modules of their own over the very same weights, so that an adapter is on in one view and off in another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from transformers import PreTrainedModel

from .checks import changes_weights


@dataclass(frozen=True)
class Adapted:
    """Which model a member is, with which adapter on: its name, the folder to load it from, or `None` for the model itself."""

    trunk: PreTrainedModel
    adapter: str | Path | None


def view_for(name: str, member: Adapted) -> PreTrainedModel:
    """The view that a member runs in."""
    trunk = member.trunk
    if not isinstance(trunk, PreTrainedModel):
        return trunk  # no model of transformers: refused with the other members
    if any(getattr(layer, "merged", False) for _, layer in adapter_modules(trunk)):
        raise ValueError(
            f"An adapter is merged into the weights of the model of the member {name!r}. Undo that: `unmerge_adapter()`."
        )
    if isinstance(member.adapter, str):
        return with_adapter(trunk, member.adapter)
    if isinstance(member.adapter, Path):
        return _load(name, plain(name, trunk), member.adapter)
    return plain(name, trunk)


def plain(name: str, trunk: Any) -> PreTrainedModel:
    """The model under the adapters: the object itself if it has none in it."""
    if not hasattr(trunk, "peft_config"):
        return trunk
    for adapter, config in trunk.peft_config.items():
        if why := changes_weights(config):
            raise ValueError(
                f"The member {name!r} is to be the model under the adapter {adapter!r}, which {why}: without the adapter it is not what "
                "it was before. Give a `reference` of its own."
            )
    return without_adapters(trunk)


def _load(name: str, trunk: PreTrainedModel, folder: Path) -> PreTrainedModel:
    from peft import PeftModel

    view = view_of(trunk)
    with flags_kept(trunk):
        try:
            loaded = PeftModel.from_pretrained(view, str(folder), adapter_name=name)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"The adapter of the member {name!r} in {str(folder)!r} does not fit the model {type(trunk).__name__} that it is put "
                f"on ({trunk.config.name_or_path or 'made from a configuration'}): {error}"
            ) from error
    return loaded.get_base_model()


def view_of(model: PreTrainedModel) -> PreTrainedModel:
    """
    A copy of the model's structure. Parameters, buffers, modules without children, configurations and offloading hooks are shared,
    so that a view costs no memory and follows when the model is moved; which adapter is active is its own.
    """
    shared: list[Any] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        # The dictionaries themselves, so that a buffer which is replaced (moved, cast) is replaced in every view.
        shared += [module._parameters, module._buffers] if any(module.children()) else [module]
        shared += [getattr(module, kept) for kept in ("config", "generation_config", "_hf_hook") if hasattr(module, kept)]
    view = copy.deepcopy(model, {id(kept): kept for kept in shared})
    for (path, module), own in zip(model.named_modules(), view.modules(), strict=True):
        if own is not module and _reaches(module.__dict__.get("forward"), {*map(id, model.modules())}):
            _give_back_forward(model, path, module, own)
    return view


def _reaches(forward: Any, modules: set[int]) -> bool:
    """Whether a `forward` that was put in a module's place calls modules that it holds, by their ids: a copy of it calls these."""
    function = getattr(forward, "__func__", forward)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            held = cell.cell_contents
        except ValueError:  # empty
            continue
        if id(getattr(held, "__self__", held)) in modules or (isinstance(held, FunctionType) and _reaches(held, modules)):
            return True
    return False


def _give_back_forward(model: Any, path: str, module: Any, own: Any) -> None:
    r"""
    Give a module of a view the `forward` of its class. TRL's trainers leave one that does more for their losses only.

    Raises:
        `ValueError`: If somebody else's may do anything, naming the module.
    """
    function = getattr(module.forward, "__func__", module.forward)
    # (`__module__` may be that of what it wraps.)
    if not str(function.__globals__.get("__name__")).startswith("trl."):
        raise ValueError(
            f"The `forward` of {type(module).__name__}{f' ({path})' if path else ''} was replaced by {function.__qualname__}, which goes "
            f"on to the same {type(model).__name__} whatever adapter is on. Give a model whose `forward` is its own: `del module.forward`, "
            "or load model and adapter anew."
        )
    del own.__dict__["forward"]


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """A view with the original modules in place of those that PEFT put there."""
    view = view_of(model)
    for path, module in list(adapter_modules(view)):
        original = module
        while is_adapter_module(original):
            original = original.get_base_layer() if hasattr(original, "get_base_layer") else original.original_module
        replace(view, path, original)
    view.__dict__.pop("peft_config", None)
    if view.__dict__.pop("_hf_peft_config_loaded", False):
        # How the names in the adapter's file became those of the model: saved with it, the model would get the file's.
        view.__dict__.pop("_weight_conversions", None)
    return view


def with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """A view with this one adapter on."""
    from peft.functional import set_adapter

    view = view_of(model)
    with flags_kept(model):
        for _, module in adapter_modules(view):
            module.enable_adapters(True)
        set_adapter(view, adapter, inference_mode=True)
    return view


def adapter_modules(model: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The modules that PEFT put into a model, outermost ones only, by path."""
    for name, module in model.named_children():
        path = f"{prefix}{name}"
        if is_adapter_module(module):
            yield path, module
        else:
            yield from adapter_modules(module, f"{path}.")


def is_adapter_module(module: torch.nn.Module) -> bool:
    """Whether PEFT put it there."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))


def replace(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    """Put a module at a path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


@contextmanager
def flags_kept(model: torch.nn.Module) -> Iterator[None]:
    """Give parameters and modules back their `requires_grad` and `training`, which PEFT sets in whatever it touches."""
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, needed in gradients:
            parameter.requires_grad_(needed)
        for module, training in modes:
            module.training = training
