"""What a combination costs on an accelerator, beside its large model alone: plain, with an adapter, and with drafts.

    python examples/benchmarks/accelerator.py            # minutes on a GPU; `--family tiny` runs on a CPU

Nothing is downloaded: weights are random, in the shapes of models that people use, and how often draft and combination agree is set
(`real_shapes.py`). All members are on static caches and compiled, as `cache_implementation="static"` has it. Milliseconds a token are
those of a call of many tokens less those of a call of few, over the difference, so that the prompt does not count; the systems take turns.
Writes `accelerator.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from real_shapes import FAMILIES, family, find_dial, text
from transformers import CompileConfig
from transformers.utils import logging

from hf_eft import EFTForCausalLM
from hf_eft.members.releases import cache_of

PROMPT = 64


def on(device: torch.device, batch: int, backend: str) -> dict[str, Any]:
    """Options of `generate` that compile."""
    # A batch of one is compiled for itself, all others together.
    config = CompileConfig(dynamic=True if batch > 1 else None, backend=backend)
    if device.type == "cpu":
        config.mode = None
        config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config, "do_sample": False, "pad_token_id": 0}


class Timer:
    """Times systems in turn, each a call of `generate` that is given how many tokens."""

    def __init__(self, device: torch.device, few: int, many: int, repeats: int) -> None:
        self.device, self.few, self.many, self.repeats = device, few, many, repeats

    def seconds(self, call: Callable[[int], Any], tokens: int) -> float:
        self._wait()
        start = time.perf_counter()
        call(tokens)
        self._wait()
        return time.perf_counter() - start

    def measure(self, systems: dict[str, Callable[[int], Any]]) -> dict[str, dict[str, Any]]:
        """Milliseconds a step (of all rows) and of a whole call, by system: medians, and the quartiles of the first."""
        warm: dict[str, float] = {}
        for name, call in systems.items():
            warm[name] = self.seconds(call, self.many)
            print(f"  {name}: compiled in {warm[name]:.0f} s", flush=True)
        for call in systems.values():  # static caches are as long as the longest so far, of whatever system of a model
            self.seconds(call, self.many)
            self.seconds(call, self.few)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in systems}
        for _ in range(self.repeats):
            for name, call in systems.items():
                found[name].append((self.seconds(call, self.many), self.seconds(call, self.few)))
        results = {}
        for name, pairs in found.items():
            steps = [1000 * (many - few) / (self.many - self.few) for many, few in pairs]
            results[name] = {
                "ms a step": round(statistics.median(steps), 3),
                "range": [round(min(steps), 3), round(max(steps), 3)],
                "whole call, ms": round(1000 * statistics.median(many for many, _ in pairs), 1),
                "compiled in s": round(warm[name], 1),
            }
        return results

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def batch_of(
    members: dict[str, Any], follows: torch.Tensor, batch: int, blocks: list[int], timer: Timer, backend: str, parts: bool
) -> dict[str, Any]:
    """The systems at one batch size."""
    device, model = timer.device, EFTForCausalLM.from_models(**members)
    options, prompt = on(device, batch, backend), text(follows, batch, PROMPT, 0.91)
    mask = torch.ones_like(prompt)

    def system(which: Any, **extra: Any) -> Callable[[int], Any]:
        return lambda tokens: which.generate(prompt, attention_mask=mask, max_new_tokens=tokens, **options, **extra)

    systems = {"large alone": system(members["base"])}
    if parts:
        systems["small alone"] = system(members["reference"])
    systems["plain"] = system(model)
    for block in blocks:
        systems[f"drafts of {block}"] = system(model, assistant_model=model.tuned, num_assistant_tokens=block)
    results: dict[str, Any] = timer.measure(systems)
    for block in blocks:
        systems[f"drafts of {block}"](timer.many)
        report = model.speculation
        accepted = sum(report.accepted) / max(1, sum(report.drafted))
        results[f"drafts of {block}"] |= {
            "tokens a round": round(report.tokens_per_round / batch, 2),
            "kept of those looked at": round(accepted, 3),
            "waits a round": waits(systems[f"drafts of {block}"], (timer.few, timer.many), model, device),
        }
    results["peak over weights and caches"] = memory(
        model, lambda: system(model, return_dict_in_generate=True)(timer.many), device
    )
    if device.type == "cuda":
        results["profile"] = {name: profile(systems[name], timer.few) for name in ("plain", f"drafts of {blocks[-1]}")}
    return results


def waits(call: Callable[[int], Any], tokens: tuple[int, int], model: Any, device: torch.device) -> float | None:
    """How often the CPU waits for the accelerator in a round: what a call of many tokens waits more than one of few, over the rounds."""
    if device.type != "cuda":
        return None
    found = []
    for count in tokens:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call(count)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append((sum("synchroniz" in str(each.message) for each in caught), model.speculation.rounds))
    (few, rounds), (many, more) = found
    return round((many - few) / max(1, more - rounds), 2)


def memory(model: Any, call: Callable[[], Any], device: torch.device) -> float | None:
    """The peak of a call, over weights and caches."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = call()
    peak = torch.cuda.max_memory_allocated() - before
    states = [t for cache in cache_of(out).members.values() for layer in cache.layers for t in (layer.keys, layer.values)]
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    held = sum(weights.values())
    caches = sum(t.numel() * t.element_size() for t in states)
    return round((held + peak) / (held + caches), 3)


def profile(call: Callable[[int], Any], tokens: int) -> dict[str, Any]:
    """How much of a call the accelerator works, how many kernels it runs, and which take most of it."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    with profiled(activities=[ProfilerActivity.CUDA]) as found:
        start = time.perf_counter()
        call(tokens)
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    kernels = [event for event in found.key_averages() if event.self_device_time_total > 0]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    first = sorted(kernels, key=lambda event: -event.self_device_time_total)[:8]
    return {
        "busy": round(busy / wall, 3),
        "kernels": sum(event.count for event in kernels),
        "most": {event.key[:80]: [event.count, round(event.self_device_time_total / 1e6 / busy, 3)] for event in first},
    }


def adapter(members: dict[str, Any], follows: torch.Tensor, timer: Timer, backend: str) -> dict[str, Any]:
    """The large model alone, and with an adapter on the small one."""
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(members["reference"], LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
    model = EFTForCausalLM.from_models(members["base"], tuned=tuned)
    prompt, options = text(follows, 1, PROMPT, 0.91), on(timer.device, 1, backend)

    def system(which: Any) -> Callable[[int], Any]:
        return lambda tokens: which.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, **options)

    return timer.measure({"large alone": system(members["base"]), "with an adapter": system(model)})


def table(results: dict[str, Any]) -> list[str]:
    """The goals' ratios."""
    lines = []
    for batch, found in results.items():
        if not batch.startswith("batch"):
            continue
        alone = found["large alone"]["ms a step"]
        plain = found["plain"]["ms a step"]
        best = min((each for each in found if each.startswith("drafts")), key=lambda each: found[each]["ms a step"])
        drafts = found[best]["ms a step"]
        lines.append(
            f"{batch}: plain / large alone (time) {plain / alone:.2f}; {best}: / plain {plain / drafts:.2f}, / large alone "
            f"{alone / drafts:.2f} (speed); peak memory {found['peak over weights and caches']}"
        )
    if "adapter" in results:
        found = results["adapter"]
        ratio = found["with an adapter"]["ms a step"] / found["large alone"]["ms a step"]
        lines.append(f"adapter: plain / large alone (time) {ratio:.2f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, default="8B + 2 x 1B")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--blocks", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--agreement", type=float, default=0.91)
    parser.add_argument("--few", type=int, default=32)
    parser.add_argument("--many", type=int, default=288)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backend", default="inductor", help="of `torch.compile`")
    parser.add_argument("--adapter", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timer = Timer(device, args.few, args.many, args.repeats)
    members, follows = family(args.family, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    dial, agreement = find_dial(members, follows, args.agreement)
    print(f"{args.family} on {machine()}: dial {dial:.2f}, agreement {agreement:.3f}", flush=True)
    stored: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
    results = stored[args.family] = {
        "machine": machine(), "date": date.today().isoformat(), "agreement": round(agreement, 3), "prompt": PROMPT,
        "tokens": [args.few, args.many],
    }  # fmt: skip
    todo: list[tuple[str, Callable[[], Any]]] = [
        (f"batch {n}", lambda n=n: batch_of(members, follows, n, args.blocks, timer, args.backend, parts=n == 1))
        for n in args.batches
    ]
    if args.adapter:
        todo.insert(1, ("adapter", lambda: adapter(members, follows, timer, args.backend)))
    for name, run in todo:
        torch.compiler.reset()
        results[name] = run()
        print(name, json.dumps(results[name], indent=1), flush=True)
        args.output.write_text(json.dumps(stored, indent=1) + "\n")
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
