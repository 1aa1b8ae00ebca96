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


def on(device: torch.device, batch: int, backend: str, mode: str = "reduce-overhead") -> dict[str, Any]:
    """Options of `generate` that compile."""
    # A batch of one is compiled for itself, all others together.
    config = CompileConfig(dynamic=True if batch > 1 else None, backend=backend, mode=mode)
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

    def warm(self, systems: dict[str, Callable[[int], Any]]) -> dict[str, float]:
        """Let all systems run until nothing is compiled any more; seconds of the first call, by system."""
        found: dict[str, float] = {}
        # A model's static cache is as long as the longest so far, of whatever system: the longest blocks, which come last, go first.
        for name, call in reversed(systems.items()):
            found[name] = self.seconds(call, self.many)
            print(f"  {name}: compiled in {found[name]:.0f} s", flush=True)
        for call in systems.values():
            self.seconds(call, self.many)
            self.seconds(call, self.few)
        return found

    def measure(self, systems: dict[str, Callable[[int], Any]]) -> dict[str, dict[str, Any]]:
        """Milliseconds a step (of all rows) and of a whole call, by system: medians, and the range of the first."""
        warm = self.warm(systems)
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
            print(f"  {name}: {json.dumps(results[name])}", flush=True)
        return results

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def batch_of(
    members: dict[str, Any],
    follows: torch.Tensor,
    batch: int,
    blocks: list[int],
    timer: Timer,
    options: dict[str, Any],
    only: str,
) -> dict[str, Any]:
    """The systems at one batch size whose names begin with `only`."""
    device, model = timer.device, EFTForCausalLM.from_models(**members)
    prompt = text(follows, batch, PROMPT, 0.91)
    mask = torch.ones_like(prompt)

    def system(which: Any, **extra: Any) -> Callable[[int], Any]:
        return lambda tokens: which.generate(prompt, attention_mask=mask, max_new_tokens=tokens, **options, **extra)

    systems = {"large alone": system(members["base"])}
    if batch == 1:
        systems["small alone"] = system(members["reference"])
    systems["plain"] = system(model)
    for block in sorted(blocks):
        systems[f"drafts of {block}"] = system(model, assistant_model=model.tuned, num_assistant_tokens=block)
    systems = {name: call for name, call in systems.items() if name.startswith(only)}
    results: dict[str, Any] = timer.measure(systems)
    for name in filter(_drafts, systems):
        systems[name](timer.many)
        report = model.speculation
        accepted = sum(report.accepted) / max(1, sum(report.drafted))
        results[name] |= {
            "tokens a round": round(report.tokens_per_round / batch, 2),
            "kept of those looked at": round(accepted, 3),
            "waits a round": waits(systems[name], (timer.few, timer.many), model, device),
        }
    if "plain" in systems:
        results["peak over weights and caches"] = memory(
            model, lambda: system(model, return_dict_in_generate=True)(timer.many), device
        )
    if device.type == "cuda":
        tokens = timer.few // 4, timer.few  # to profile many takes long
        results["profile"] = {name: profile(systems[name], tokens) for name in {"plain", [*systems][-1]} & set(systems)}
    return results


def _drafts(name: str) -> bool:
    return name.startswith("drafts")


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


def profile(call: Callable[[int], Any], tokens: tuple[int, int]) -> dict[str, Any]:
    """What the accelerator does for a token, by a call of many less one of few: how long, in how many kernels, and which take most."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    found = []
    for count in tokens:
        with profiled(activities=[ProfilerActivity.CUDA]) as events:
            call(count)
            torch.cuda.synchronize()
        found.append({event.key: (event.count, event.self_device_time_total / 1e3) for event in events.key_averages()})
    (few, many), more = found, tokens[1] - tokens[0]
    kernels = {
        key: ((count - few.get(key, (0, 0))[0]) / more, (ms - few.get(key, (0, 0.0))[1]) / more)
        for key, (count, ms) in many.items()
        if ms > 0
    }
    busy = sum(ms for _, ms in kernels.values())
    first = sorted(kernels, key=lambda key: -kernels[key][1])[:8]
    return {
        "busy, ms a token": round(busy, 3),
        "kernels a token": round(sum(count for count, _ in kernels.values()), 1),
        "most": {key[:80]: [round(kernels[key][0], 1), round(kernels[key][1] / busy, 3)] for key in first},
    }


def adapter(members: dict[str, Any], follows: torch.Tensor, timer: Timer, options: dict[str, Any]) -> dict[str, Any]:
    """The large model alone, and with an adapter on the small one."""
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(members["reference"], LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
    model = EFTForCausalLM.from_models(members["base"], tuned=tuned)
    prompt = text(follows, 1, PROMPT, 0.91)

    def system(which: Any) -> Callable[[int], Any]:
        return lambda tokens: which.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, **options)

    return timer.measure({"large alone": system(members["base"]), "with an adapter": system(model)})


def table(results: dict[str, Any]) -> list[str]:
    """The goals' ratios."""
    lines = []
    for batch, found in results.items():
        if not batch.startswith("batch") or not {"large alone", "plain"} <= set(found) or not any(map(_drafts, found)):
            continue
        alone = found["large alone"]["ms a step"]
        plain = found["plain"]["ms a step"]
        best = min(filter(_drafts, found), key=lambda each: found[each]["ms a step"])
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
    parser.add_argument("--mode", default="reduce-overhead", help="of `torch.compile`, on an accelerator")
    parser.add_argument("--only", default="", metavar="BEGINNING", help="systems whose names begin so")
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

    def options(batch: int) -> dict[str, Any]:
        return on(device, batch, args.backend, args.mode)

    todo: list[tuple[str, Callable[[], Any]]] = [
        (f"batch {n}", lambda n=n: batch_of(members, follows, n, args.blocks, timer, options(n), args.only))
        for n in args.batches
    ]
    if args.adapter:
        todo.insert(1, ("adapter", lambda: adapter(members, follows, timer, options(1))))
    for name, run in todo:
        torch.compiler.reset()
        results[name] = run()
        print(name, json.dumps(results[name], indent=1), flush=True)
        args.output.write_text(json.dumps(stored, indent=1) + "\n")
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
