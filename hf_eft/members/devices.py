"""Where a model computes, what goes to and fro between there and the CPU, and whether there was no memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel


def weights_device(module: torch.nn.Module) -> torch.device:
    """Where a module's first weight is, or where it says that it is. A step asks so often that a walk over all modules would count."""
    if getattr(type(module), "device", None) is PreTrainedModel.device:
        device: Any = _first(module)
    else:
        device = getattr(module, "device", None) or _first(module)
    if device is None:
        raise ValueError(f"Expected a model with weights, got a {type(module).__name__} that has none.")
    return device


def _first(module: torch.nn.Module) -> torch.device | None:
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter.device
    for child in module._modules.values():
        if child is not None and (found := _first(child)) is not None:
            return found
    return None


def execution_device(module: torch.nn.Module) -> torch.device:
    """
    The device that a module wants its inputs on. Weights that accelerate has offloaded are on `"meta"` between two steps: its hooks know
    where they are brought to.
    """
    device = weights_device(module)
    if device.type != "meta":
        return device
    for each in module.modules():
        hook = getattr(each, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):  # a `SequentialHook` has several
            if (brought_to := getattr(part, "execution_device", None)) is not None:
                return torch.device(brought_to)
    return device


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether each process of a group has a part of a model, so that all must run it together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def fetched(*values: torch.Tensor) -> list[Any]:
    """Tensors as (nested) lists, in one transfer: an accelerator is waited for once."""
    if all(value.device.type == "cpu" for value in values):
        return [value.tolist() for value in values]
    together = torch.cat([value.reshape(-1).double() for value in values]).cpu()
    parts = together.split([value.numel() for value in values])
    return [part.view(value.shape).to(value.dtype).tolist() for part, value in zip(parts, values, strict=True)]


def sent(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """A list as a tensor on a device, which is not waited for."""
    return torch.tensor(values).to(device, non_blocking=True)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory, which is nobody's fault and may be otherwise the next time."""
    # PyTorch has no class of its own for the memory of the CPU.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
