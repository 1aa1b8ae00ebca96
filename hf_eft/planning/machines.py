"""What a machine can do: accelerators by their data sheets, or this machine, measured."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

_GB = 10**9


@dataclass(frozen=True)
class Machine:
    r"""
    One device.

    Args:
        name (`str`): What it is called.
        memory (`int`): Bytes.
        bandwidth (`float`): Bytes a second that weights are read with.
        rate (`float`): Operations a second of products of matrices.
        overhead (`float`, *optional*, defaults to 0): Seconds that a layer takes however small it is.
        products (`tuple[tuple[int, float], ...]`, *optional*):
            By number of rows, seconds of a product for each weight, where they were measured. Few rows are slower than the others say.
        moves (`float`, *optional*, defaults to 1): How often a step moves the states: 1 to read them, more where they are copied to grow.
    """

    name: str
    memory: int
    bandwidth: float
    rate: float
    overhead: float = 0.0
    products: tuple[tuple[int, float], ...] = ()
    moves: float = 1.0

    def product(self, weights: int, size: int, rows: int) -> float:
        """Seconds of a product of so many weights of so many bytes in all with this number of rows."""
        if not self.products:
            return max(size / self.bandwidth, 2 * weights * rows / self.rate)
        known = self.products
        above = next((i for i, (n, _) in enumerate(known) if n >= rows), None)
        if above is None:
            return weights * known[-1][1] * rows / known[-1][0]
        if above == 0:
            return weights * known[0][1]
        (low, quick), (high, slow) = known[above - 1], known[above]
        return weights * (quick + (slow - quick) * (rows - low) / (high - low))


# Memory, its bandwidth, and dense bfloat16 operations, as the makers' data sheets have them.
KNOWN = {
    machine.name: machine
    for machine in (
        Machine("a10", 24 * _GB, 0.6e12, 125e12),
        Machine("a100-40gb", 40 * _GB, 1.555e12, 312e12),
        Machine("a100-80gb", 80 * _GB, 2.039e12, 312e12),
        Machine("h100", 80 * _GB, 3.35e12, 989e12),
        Machine("h200", 141 * _GB, 4.8e12, 989e12),
        Machine("l4", 24 * _GB, 0.3e12, 121e12),
        Machine("l40s", 48 * _GB, 0.864e12, 362e12),
        Machine("mi300x", 192 * _GB, 5.3e12, 1307e12),
    )
}
HERE = "here"
_ROWS = (1, 2, 4, 8, 16, 64, 256)


def machine_of(name: str, dtype: torch.dtype) -> Machine:
    """A machine by its name; [`HERE`] is measured, which takes seconds."""
    if name == HERE:
        return measured(dtype)
    if name not in KNOWN:
        raise ValueError(f"Which machine? Expected {HERE!r} or one of {', '.join(KNOWN)}, got {name!r}.")
    return KNOWN[name]


@torch.no_grad()
def measured(dtype: torch.dtype) -> Machine:
    """This machine: how fast a product with one row reads weights, how fast one with many rows is, and what a small layer takes."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = device or torch.device("cpu")
    weight = torch.randn(8192, 8192, dtype=dtype, device=device)  # larger than caches of processors
    given = torch.randn(_ROWS[-1], 8192, dtype=dtype, device=device)
    times = {rows: _seconds(functools.partial(torch.matmul, given[:rows], weight.T), device) for rows in _ROWS}
    small = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=8,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    small = small.to(device, dtype).eval()
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    overhead = _seconds(lambda: small(ids, use_cache=True), device) / 8
    elements = weight.numel()
    return Machine(
        HERE, _memory(device), elements * weight.element_size() / times[1], 2 * _ROWS[-1] * elements / times[_ROWS[-1]], overhead,
        tuple((rows, seconds / elements) for rows, seconds in times.items()), moves=3.0,
    )  # fmt: skip


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
