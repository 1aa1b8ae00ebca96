"""What a machine can do: accelerators by their data sheets, or this machine, measured."""

from __future__ import annotations

import bisect
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
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
        products (`tuple[tuple[int, tuple[tuple[int, float], ...]], ...]`, *optional*):
            By number of weights in a matrix, and by number of rows, seconds of a product for each weight, where they were measured. Few
            rows, and small matrices, are slower than the others say.
        moves (`float`, *optional*, defaults to 1): How often a step moves the states: 1 to read them, more where they are copied to grow.
        between (`float`, *optional*, defaults to 0): Seconds that `generate` takes between two steps of a model, whatever its size.
    """

    name: str
    memory: int
    bandwidth: float
    rate: float
    overhead: float = 0.0
    products: tuple[tuple[int, tuple[tuple[int, float], ...]], ...] = ()
    moves: float = 1.0
    between: float = 0.0

    def product(self, weights: int, size: float, rows: int) -> float:
        """Seconds of a product of one matrix, of so many weights of so many bytes in all, with this number of rows."""
        if not self.products:
            return max(size / self.bandwidth, 2 * weights * rows / self.rate)
        by_size = [(math.log(each), _between(known, rows)) for each, known in self.products]
        return weights * _between(by_size, math.log(weights), beyond=False)


def _between(known: Sequence[tuple[float, float]], place: float, beyond: bool = True) -> float:
    """The value at a place between known ones; beyond the last one it grows with the place, or stays."""
    places = [at for at, _ in known]
    above = bisect.bisect_left(places, place)
    if above == len(known):
        return known[-1][1] * (place / places[-1] if beyond else 1.0)
    if above == 0:
        return known[0][1]
    (low, first), (high, second) = known[above - 1], known[above]
    return first + (second - first) * (place - low) / (high - low)


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
_WIDTHS = (512, 1024, 2048, 8192)  # of square matrices
_LAYERS = (2, 10)  # of models that are all overhead
_STEPS = (4, 20)
_WEIGHTS = 8192**2  # read between two looks at one of them: more than caches of processors hold


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
    # Many rows take the same of every size.
    products = tuple(
        (width * width, _products(width, _ROWS if width == _WIDTHS[-1] else _ROWS[:-1], dtype, device)) for width in _WIDTHS
    )
    few, many = (_step(layers, dtype, device) for layers in _LAYERS)
    overhead = max(0.0, many - few) / (_LAYERS[1] - _LAYERS[0])
    by_rows = dict(products[-1][1])
    return Machine(
        HERE,
        _memory(device),
        dtype.itemsize / by_rows[1],
        2 * _ROWS[-1] / by_rows[_ROWS[-1]],
        overhead,
        products,
        moves=3.0,
        between=max(0.0, few - _LAYERS[0] * overhead),
    )


def _products(width: int, numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> tuple[tuple[int, float], ...]:
    """Seconds of a product for each weight of a square matrix, by number of rows."""
    matrices = torch.randn(_WEIGHTS // width**2, width, width, dtype=dtype, device=device)
    given = torch.randn(numbers[-1], width, dtype=dtype, device=device)

    def by_all(rows: int) -> None:
        for matrix in matrices:
            torch.nn.functional.linear(given[:rows], matrix)

    return tuple((rows, _seconds(functools.partial(by_all, rows), device) / matrices.numel()) for rows in numbers)


def _step(layers: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of a step of `generate` of a model that has next to no weights."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=1, eos_token_id=None
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    ids = torch.ones(1, 16, dtype=torch.long, device=device)

    def generate(tokens: int) -> float:
        return _seconds(lambda: model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0), device)

    return (generate(_STEPS[1]) - generate(_STEPS[0])) / (_STEPS[1] - _STEPS[0])


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(4):
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
