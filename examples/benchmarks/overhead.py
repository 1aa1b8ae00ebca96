"""What emulated fine-tuning costs beyond its parts: time per token, peak memory, and the import.

    python examples/benchmarks/overhead.py            # about 10 minutes on 2 CPU cores

Time: one decoding step of the wrapper and of the add-on against the sum of the three models' bare forwards with caches of their own, the
three timed alternately in one run. Memory: the peak of the process during `generate` against weights and caches. Writes
`overhead.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from timing import Bare, in_turn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

VOCAB = 32_000


def llama(layers: int, width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def steps(models: dict[str, Any], batch: int, prompt_length: int, rounds: int) -> dict[str, float]:
    """Medians in milliseconds for a step of the parts, of the wrapper, and of the base with the add-on."""
    prompt = torch.randint(3, VOCAB, (batch, prompt_length))
    parts = [Bare(model, prompt) for model in models.values()]
    host, add_on = Bare(models["base"], prompt), EFTLogitsProcessor(models["tuned"], models["reference"], pad_token_id=-1)
    add_on(prompt, torch.zeros(batch, VOCAB))
    grown = [prompt]

    def add_on_step() -> None:
        grown[0] = torch.cat([grown[0], prompt[:, -1:]], dim=1)
        add_on(grown[0], host().logits[:, -1].float())

    wrapper = Bare(EFTForCausalLM.from_models(**models), prompt)
    times = in_turn({"parts": lambda: [part() for part in parts], "wrapper": wrapper, "add-on": add_on_step}, rounds)
    ratios = {name: [t / p for t, p in zip(times[name], times["parts"], strict=True)] for name in ("wrapper", "add-on")}
    return {
        **{f"{name} ms": 1000 * statistics.median(values) for name, values in times.items()},
        **{f"{name} / parts": statistics.median(values) for name, values in ratios.items()},
        **{
            f"{name} / parts, quartiles": [round(q, 3) for q in statistics.quantiles(v, n=4)[::2]] for name, v in ratios.items()
        },
    }


def measure_memory(layers: int, width: int, system: str, allocator: str) -> dict[str, float]:
    """
    Peak resident memory of a generate call in a process of its own, beyond what the process had before the models: of the wrapper
    (`"combination"`) or of the base alone.

    With the allocator `"returning"` freed blocks go back at once, and the peak shows what is alive; `"default"` keeps them, and the
    peak shows its fragmentation as well.
    """
    code = f"""
import resource, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from overhead import llama, VOCAB
from hf_eft import EFTForCausalLM
from hf_eft.members.releases import cache_of
def rss(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20
torch.set_num_threads(1)
warm = llama(1, 64); warm.generate(torch.tensor([[1, 2]]), max_new_tokens=4, pad_token_id=0); del warm
before = rss()
if {system!r} == "combination":
    small = {layers // 3}
    models = dict(base=llama({layers}, {width}), tuned=llama(small, {width}), reference=llama(small, {width}))
    model = EFTForCausalLM.from_models(**models)
else:
    model = llama({layers}, {width})
weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
out = model.generate(torch.randint(3, VOCAB, (4, 512)), max_new_tokens=32, pad_token_id=0, return_dict_in_generate=True)
cache = cache_of(out)
layers = [layer for c in getattr(cache, "members", dict(base=cache)).values() for layer in c.layers]
caches = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values)) / 2**20
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
print(weights, caches, peak)
"""
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"} if allocator == "returning" else {}
    done = subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, **returning})
    weights, caches, peak = map(float, done.split())
    return {
        "weights MiB": weights,
        "caches MiB": caches,
        "peak MiB": peak,
        "peak / (weights + caches)": peak / (weights + caches),
    }


def import_time(repeats: int = 7) -> dict[str, float]:
    """Seconds that `import hf_eft` adds to importing transformers' `AutoModelForCausalLM`."""
    clock = "import time; from transformers import AutoModelForCausalLM; t = time.perf_counter()"
    code = f"{clock}; import hf_eft; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(repeats)]
    return {"import adds s": statistics.median(times), "import adds s, max": max(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--parts", nargs="*", default=["import", "memory", "time"], help="what to measure; the rest is kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
    results |= {"machine": machine(), "date": date.today().isoformat(), "command": "python examples/benchmarks/overhead.py"}
    if "import" in args.parts:
        results["import"] = import_time()
    if "memory" in args.parts:
        results["memory"] = {
            f"{system}, {allocator} allocator": measure_memory(args.layers, args.width, system, allocator)
            for system in ("combination", "base alone")
            for allocator in ("returning", "default")
        }
    if "time" in args.parts:
        torch.manual_seed(0)
        models = {
            "base": llama(args.layers, args.width),
            **{n: llama(args.layers // 3, args.width) for n in ("tuned", "reference")},
        }
        for batch, prompt in ((1, 16), (1, 1024), (16, 16), (16, 1024)):
            key = f"batch {batch}, prompt {prompt}"
            results[key] = steps(models, batch, prompt, args.rounds if batch == 1 else args.rounds // 2)
            print(key, json.dumps(results[key], indent=1), flush=True)
    print(json.dumps({part: results.get(part) for part in ("import", "memory")}, indent=1))
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
