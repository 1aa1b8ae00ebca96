"""`hf-eft plan` beside what was measured: peak memory and the time of a token, of five combinations on this machine.

    python examples/benchmarks/planned.py            # 5 to 10 minutes on 2 CPU cores

Each combination runs in two processes: one gives freed memory back at once, so that its peak is what was held; the other is timed. The
plan is made of configurations alone, and of what this machine was measured to do. Writes `planned.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from transformers import LlamaConfig

from hf_eft.planning import HERE, machine_of, plan

# Layers of the large and of the small models, width, heads of keys of the large one (the small ones have one for each head of queries),
# rows, prompt, tokens.
SETTINGS = {
    "24 and 8 layers of 512": (24, 8, 512, 8, 1, 64, 64),
    "24 and 8 layers of 512, 8 rows": (24, 8, 512, 8, 8, 256, 32),
    "16 and 4 layers of 1,024": (16, 4, 1024, 16, 1, 64, 48),
    "16 and 8 layers of 1,024, grouped keys": (16, 8, 1024, 4, 1, 1024, 48),
    "8 and 4 layers of 2,048, 4 rows": (8, 4, 2048, 32, 4, 128, 24),
}
VOCAB = 16_000


def configs(layers: int, small: int, width: int, keys: int) -> dict[str, LlamaConfig]:
    def config(layers: int, keys: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=VOCAB, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
            num_attention_heads=width // 64, num_key_value_heads=keys, eos_token_id=None, dtype="float32",
        )  # fmt: skip

    return {"base": config(layers, keys), "tuned": config(small, width // 64), "reference": config(small, width // 64)}


def run(name: str, what: str) -> None:
    """A combination in this process: prints its peak in bytes, or the seconds of a step."""
    import resource
    import time

    from transformers import LlamaForCausalLM

    from hf_eft import EFTForCausalLM

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    layers, small, width, keys, rows, prompt, new = SETTINGS[name]
    warm = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
    )
    warm.generate(torch.tensor([[1, 2]]), max_new_tokens=4, pad_token_id=0)
    del warm
    before = resident()
    model = EFTForCausalLM.from_models(
        **{name: LlamaForCausalLM(config).eval() for name, config in configs(layers, small, width, keys).items()}
    )
    ids = torch.randint(3, VOCAB, (rows, prompt))
    model.generate(ids, max_new_tokens=new, pad_token_id=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if what == "peak":
        print(peak)
        return
    times = []
    for tokens in (4, new, 4, new, 4, new):
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, pad_token_id=0)
        times.append(time.perf_counter() - start)
    print(sorted((many - few) / (new - 4) for few, many in zip(times[::2], times[1::2], strict=True))[1])


def child(name: str, what: str, **environment: str) -> float:
    """One figure, from a process of its own."""
    command = [sys.executable, __file__, "--run", name, what]
    return float(subprocess.check_output(command, text=True, env={**os.environ, **environment}).splitlines()[-1])


def beside(planned: float, measured: float) -> dict[str, float]:
    return {"planned": round(planned, 1), "measured": round(measured, 1), "planned / measured": round(planned / measured, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    torch.set_num_threads(1)  # threads that wait for each other measure who else uses the machine
    parser.add_argument("--run", nargs=2, metavar=("SETTING", "WHAT"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if args.run:
        run(*args.run)
        return
    here = machine_of(HERE, torch.float32)
    results: dict[str, Any] = {
        "machine": machine(), "date": date.today().isoformat(), "command": "python examples/benchmarks/planned.py",
        "bandwidth, GB/s": round(here.bandwidth / 1e9, 1), "settings": {},
    }  # fmt: skip
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for name, (layers, small, width, keys, rows, prompt, new) in SETTINGS.items():
        found = plan(configs(layers, small, width, keys), machine=here, rows=rows, prompt=prompt, new_tokens=new)
        peak, step = child(name, "peak", **returning), child(name, "step")
        results["settings"][name] = {
            "peak, MB": beside(found.peak / 1e6, peak / 1e6),
            "ms a step": beside(1000 * found.step, 1000 * step),
        }
        print(name, json.dumps(results["settings"][name], indent=1), flush=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
