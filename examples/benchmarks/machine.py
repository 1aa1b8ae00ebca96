"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers


def machine() -> str:
    """Processor or accelerator, the instructions that kernels use, cores, and the versions that matter."""
    if torch.accelerator.is_available():
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())
    else:
        info = Path("/proc/cpuinfo")
        models = (
            [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
            if info.exists()
            else []
        )
        # Processors of one name differ in this, and ratios with them.
        name = f"{models[0] if models else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, transformers {transformers.__version__}"
