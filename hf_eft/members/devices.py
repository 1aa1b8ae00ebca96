"""Where a model computes, which its first weight does not say if that is offloaded, and whether there was no memory for it."""

from __future__ import annotations

from typing import Any

import torch


def execution_device(module: torch.nn.Module) -> torch.device:
    """
    The device that a module wants its inputs on. Weights that accelerate has offloaded are on `"meta"` between two steps: its hooks know
    where they are brought to.
    """
    device: Any = module.device if hasattr(module, "device") else next(module.parameters()).device
    if device.type != "meta":
        return device
    for each in module.modules():
        hook = getattr(each, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):  # a `SequentialHook` has several
            if (brought_to := getattr(part, "execution_device", None)) is not None:
                return torch.device(brought_to)
    return device


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory, which is nobody's fault and may be otherwise the next time."""
    # PyTorch has no class of its own for the memory of the CPU.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
