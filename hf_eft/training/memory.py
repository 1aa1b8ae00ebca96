"""Training that runs out of memory: said with what to change, what changes the result least first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..members.devices import ran_out_of_memory
from .settings import Settings


@contextmanager
def memory_said(settings: Settings) -> Iterator[None]:
    """
    Raises:
        `MemoryError`: In place of whichever error says that there was no memory, with what to do.
    """
    try:
        yield
    except BaseException as error:
        if not ran_out_of_memory(error):
            raise
        raise MemoryError(advice(settings)) from error


def advice(settings: Settings) -> str:
    """What to change so that a step takes less memory."""
    ways = []
    if settings.batch_size > 1:
        half = settings.batch_size // 2
        accumulation = -(-settings.per_step // half)
        same = "the same steps, and it goes on from its last checkpoint" if half * accumulation == settings.per_step else "less"
        ways.append(f"--batch-size {half} --accumulation {accumulation} ({same})")
    if not settings.gradient_checkpointing:
        ways.append("--gradient-checkpointing (the same steps, slower)")
    if settings.lora_r is None:
        ways.append("--lora-r 16 (one small model in memory, not two, and no optimizer for its weights)")
    ways.append(f"--max-length below {settings.max_length}, with shorter examples")
    ways.append(
        "a base in int8 or nf4, or offloaded (from Python: `quantization_config` or `device_map` where the base is loaded, docs/tuning.md)"
    )
    return (
        f"There was no memory for {settings.batch_size} examples of up to {settings.max_length} tokens at a time. In this order: "
        + "; ".join(ways)
        + "."
    )
