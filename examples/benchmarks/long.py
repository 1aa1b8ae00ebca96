"""Texts of 32,768 tokens: time per token and memory over the position, and how many drafts are kept.

    python examples/benchmarks/long.py            # about 3 minutes on one idle CPU core
    python examples/benchmarks/long.py 4096       # shorter texts

A combination with phases (thoughts with a budget), one without, its members alone, and one whose small members have a sliding window. Each
reads one text, and at 16 positions goes on from there by 64 tokens: the time of a token (that of the fastest quarter, for the machine may
be busy), how much of it is spent beside the members' forwards, and what the process holds beyond the caches. And drafts by the tuned
member, of 192 tokens at each position: the share that was kept. Models are small and random, so that only whether a line is flat has a
meaning. Writes `long.json` and `long.png` beside this file.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, StoppingCriteria

from hf_eft import Combination, EFTForCausalLM, Phase
from hf_eft.evaluation import plots
from hf_eft.files import as_json

WINDOW, VOCAB, POSITIONS = 512, 512, 16
LARGE = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "intermediate_size": 256,
}
SMALL = {**LARGE, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
RECIPE = Combination.emulate(alpha={"think": 0.5, "answer": 0.3}, phases=[Phase("think", [5], [6, 7], budget=64)])


def member(seed: int, size: dict[str, int], window: int | None = None, like: Any = None) -> Any:
    """A random model in float32; `like` another, but for a little noise."""
    torch.manual_seed(seed)
    common = {**size, "vocab_size": VOCAB, "max_position_embeddings": 65536, "eos_token_id": None, "pad_token_id": 0}
    config = LlamaConfig(**common) if window is None else MistralConfig(**common, sliding_window=window)
    model = (LlamaForCausalLM if window is None else MistralForCausalLM)(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
        if like is not None:
            for own, other in zip(model.parameters(), like.parameters(), strict=True):
                own.copy_(other + 0.02 * other.std() * torch.randn_like(other))
    model.generation_config.eos_token_id = None
    return model


class Times(StoppingCriteria):
    """When each token was there, and what the process held."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.at.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def resident() -> int:
    """Bytes that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def size_of(cache: Any) -> int:
    """Bytes of keys and values."""
    caches = cache.members.values() if hasattr(cache, "members") else [cache]
    return sum(layer.keys.nbytes + layer.values.nbytes for each in caches for layer in each.layers)


def stretches(model: Any, length: int, new: int, **how: Any) -> Iterator[tuple[int, int, Any, list[float]]]:
    """One text, read and gone on with in turn: the position, what was held before, the output, and when each token was there."""
    generator = torch.Generator().manual_seed(3)
    ids, cache, start = torch.zeros(1, 0, dtype=torch.long), None, resident()
    for position in range(length // POSITIONS, length + 1, length // POSITIONS):
        more = torch.randint(8, VOCAB, (1, position - new - ids.shape[1]), generator=generator)
        ids, times = torch.cat([ids, more], dim=1), Times()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=True, top_k=0, stopping_criteria=[times],
            cache=cache, return_dict_in_generate=True, **how,
        )  # fmt: skip
        ids, cache = out.sequences, out.cache
        yield position, start, cache, times.at


def watched(model: Any) -> list[list[float]]:
    """For each member, how long its forwards take from now on: a list for each that grows."""
    spent: list[list[float]] = []
    for each in model.members.values():
        begun, times = [0.0], list[float]()
        each.register_forward_pre_hook(lambda *_, begun=begun: begun.__setitem__(0, time.perf_counter()))
        each.register_forward_hook(lambda *_, begun=begun, times=times: times.append(time.perf_counter() - begun[0]))
        spent.append(times)
    return spent


def along(model: Any, length: int) -> list[dict[str, float]]:
    """By position, milliseconds per token and those beside the members' forwards, megabytes of the caches, and megabytes beyond them."""
    found, spent = [], watched(model) if isinstance(model, EFTForCausalLM) else []
    for position, start, cache, at in stretches(model, length, 64):
        gaps = [b - a for a, b in itertools.pairwise(at)]
        last = [sum(step) for step in zip(*(times[-len(gaps) :] for times in spent), strict=True)] or [0.0] * len(gaps)
        beside = [gap - forwards for gap, forwards in zip(gaps, last, strict=True)]
        held = {"cache_mb": size_of(cache) / 2**20, "beyond_mb": (resident() - start - size_of(cache)) / 2**20}
        found.append({"position": position, "ms": 1e3 * quick(gaps), "beside_ms": 1e3 * quick(beside), **held})
        print(f"{type(model).__name__} {found[-1]}", flush=True)
    return found


def quick(times: list[float]) -> float:
    """That of the fastest quarter."""
    return sorted(times)[len(times) // 4]


def kept(model: EFTForCausalLM, length: int) -> list[dict[str, float]]:
    """By position, the share of drafted tokens that were kept."""
    found = []
    for position, *_ in stretches(model, length, 192, assistant_model=model.members["tuned"], num_assistant_tokens=4):
        report = model.speculation
        share = sum(report.accepted) / max(1, sum(report.drafted))
        found.append({"position": position, "kept": share, "per_round": report.tokens_per_round})
        print(f"drafts {found[-1]}", flush=True)
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(15, 4), layout="constrained")
    times, beside, memory, drafts = figure.subplots(1, 4)
    for name, points in result["along"].items():
        at = [point["position"] / 1024 for point in points]
        times.plot(at, [point["ms"] for point in points], label=name)
        beside.plot(at, [0 if name.endswith("alone") else point["beside_ms"] for point in points])
        memory.plot(at, [point["beyond_mb"] for point in points])
    alone = [points for name, points in result["along"].items() if name.endswith("alone")]
    summed = [sum(point["ms"] for point in points) for points in zip(*alone, strict=True)]
    times.plot(at, summed, "k--", label="sum of the members alone")
    kept = [point["kept"] for point in result["drafts"]]
    drafts.plot([point["position"] / 1024 for point in result["drafts"]], kept, color=plots.colour("combined"))
    times.set(title="Time per token", ylabel="ms", ylim=(0, None))
    beside.set(title="Of it beside the members' forwards", ylabel="ms", ylim=(0, None))
    memory.set(title="Memory beyond the caches", ylabel="MB since the start")
    drafts.set(title="Drafted tokens that were kept", ylabel="share", ylim=(0, 1))
    for panel in (times, beside, memory, drafts):
        panel.set_xlabel("position, thousands of tokens")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    length = int(sys.argv[1]) if len(sys.argv) > 1 else 32768
    torch.set_num_threads(1)
    base = member(0, LARGE)
    reference, windowed = member(2, SMALL), member(2, SMALL, WINDOW)
    tuned, narrow = member(1, SMALL, like=reference), member(1, SMALL, WINDOW, like=windowed)
    combined = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=RECIPE)
    plain = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=0.5)
    cheap = EFTForCausalLM.from_models(base, tuned=narrow, reference=windowed, combination=RECIPE)
    runs: dict[str, Callable[[], Any]] = {
        "base alone": lambda: along(base, length),
        "tuned alone": lambda: along(tuned, length),
        "reference alone": lambda: along(reference, length),
        "combination": lambda: along(plain, length),
        "with phases": lambda: along(combined, length),
        f"phases, small members with a window of {WINDOW}": lambda: along(cheap, length),
    }
    result: dict[str, Any] = {"machine": machine(), "date": date.today().isoformat(), "length": length}
    result["along"] = {name: run() for name, run in runs.items()}
    result["drafts"] = kept(combined, length)
    here = Path(__file__).parent
    (here / "long.json").write_text(as_json(result))
    draw(json.loads(as_json(result)), here / "long.png")


if __name__ == "__main__":
    main()
