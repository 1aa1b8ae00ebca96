"""Compiled steps on static caches beside eager ones on caches that grow, plain and with drafts, on this CPU.

    python examples/benchmarks/compiled.py            # about 20 minutes on 2 CPU cores

One thread. A large model of 32 layers and two small ones of 4, of one width, random weights, whose agreement is set. Each system generates
few and many tokens; the difference is the time of a token of all rows, so that neither the prompt nor compiling counts. The systems take
turns, and so do three prompts. Writes `compiled.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from speed_family import VOCAB, find_dial, speed_family
from timing import seconds
from transformers import CompileConfig
from transformers.utils import logging

from hf_eft import EFTForCausalLM

LAYERS, SMALL, WIDTH, AGREEMENT = 32, 4, 512, 0.91
PROMPT, FEW, MANY = 32, 4, 64
EAGER, COMPILED, DRAFTS = "eager", "compiled", "drafts, "


def compiled(batch: int) -> dict[str, Any]:
    """Options of `generate` that compile on a CPU; a batch of one is compiled for itself."""
    config = CompileConfig(mode=None, dynamic=True if batch > 1 else None)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def systems(members: dict[str, Any], batch: int, blocks: list[int]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """By name, a model and options of `generate`."""
    model, found = EFTForCausalLM.from_models(**members), {}
    drafting = [
        {"assistant_model": model.tuned, **({"num_assistant_tokens": block} if block else {})} for block in (*blocks, 0)
    ]
    for how, options in ((EAGER, {}), (COMPILED, compiled(batch))):
        for name, member in members.items():
            found[f"{name} alone, {how}"] = member, options
        found[f"plain, {how}"] = model, options
        for block, drafts in zip((*blocks, "automatic"), drafting, strict=True):
            found[f"{DRAFTS}{block}, {how}"] = model, {**options, **drafts}
    return found


def measured(members: dict[str, Any], batch: int, blocks: list[int], repeats: int) -> dict[str, Any]:
    """Milliseconds of a token of all rows by system, each time that its turn came, and what the drafts were worth."""
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, VOCAB, (batch, PROMPT), generator=generator) for _ in range(3)]
    rows = systems(members, batch, blocks)

    def call(name: str, prompt: torch.Tensor, tokens: int) -> Callable[[], Any]:
        model, options = rows[name]
        mask = torch.ones_like(prompt)
        return lambda: model.generate(
            prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0, **options
        )

    expected = [call(f"plain, {EAGER}", prompt, MANY)() for prompt in prompts]
    for warming in ("compiles", "with static caches as long as the longest of its model"):
        for name in rows:
            spent = [seconds(call(name, prompts[0], tokens)) for tokens in (MANY, FEW)]
            print(f"  {name}, {warming}: {sum(spent):.1f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in rows}
    worth: dict[str, list[float]] = {}
    for i in range(repeats):
        prompt, wanted = prompts[i % len(prompts)], expected[i % len(prompts)]
        for name, (model, _) in rows.items():
            answers: list[torch.Tensor] = []
            many = seconds(lambda name=name, prompt=prompt, into=answers: into.append(call(name, prompt, MANY)()))  # type: ignore[misc]
            if name.startswith(DRAFTS):
                if not torch.equal(answers[0], wanted):
                    raise AssertionError(f"{name} gave other tokens than plain decoding")
                worth.setdefault(name, []).append(model.speculation.tokens_per_round / batch)
            few = seconds(call(name, prompt, FEW))
            times[name].append(1000 * (many - few) / (MANY - FEW))
    return {"ms": times, "tokens a round": {name: round(statistics.fmean(each), 2) for name, each in worth.items()}}


def between(one: list[float], other: list[float]) -> dict[str, Any]:
    """How many times as long the one takes as the other: the ratio of the medians, and the range turn by turn."""
    turns = [a / b for a, b in zip(one, other, strict=True)]
    return {
        "ratio": round(statistics.median(one) / statistics.median(other), 2),
        "range": [round(min(turns), 2), round(max(turns), 2)],
    }


def lines(found: dict[str, Any]) -> dict[str, Any]:
    """What is compared. Speeds are inverse times."""
    times = found["ms"]
    parts = [
        sum(each) for each in zip(*(times[f"{name} alone, {COMPILED}"] for name in ("base", "tuned", "reference")), strict=True)
    ]
    best = {
        how: min((n for n in times if n.startswith(DRAFTS) and n.endswith(how)), key=lambda n: statistics.median(times[n]))
        for how in (EAGER, COMPILED)
    }
    quickest = times[min(best.values(), key=lambda n: statistics.median(times[n]))]
    return {
        "compiled step / sum of the parts' (time)": between(times[f"plain, {COMPILED}"], parts),
        "drafts compiled / drafts eager (speed)": between(times[best[EAGER]], times[best[COMPILED]]),
        "drafts / plain (speed)": between(times[f"plain, {EAGER}"], quickest),
        "drafts / large alone (speed)": between(times[f"base alone, {EAGER}"], quickest),
        "drafts / plain, both compiled (speed)": between(times[f"plain, {COMPILED}"], times[best[COMPILED]]),
        "drafts / large alone, both compiled (speed)": between(times[f"base alone, {COMPILED}"], times[best[COMPILED]]),
        "best drafts": best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    members = speed_family(LAYERS, SMALL, WIDTH, dial=0.1)
    agreement = find_dial(EFTForCausalLM.from_models(**members), SMALL, AGREEMENT)
    results: dict[str, Any] = {
        "command": "python examples/benchmarks/compiled.py", "machine": machine(), "threads": 1, "date": date.today().isoformat(),
        "layers": [LAYERS, SMALL, SMALL], "width": WIDTH, "agreement": round(agreement, 3), "prompt": PROMPT, "batches": {},
    }  # fmt: skip
    for batch in args.batches:
        found = measured(members, batch, args.blocks, args.repeats)
        results["batches"][str(batch)] = lines(found) | {
            "ms of a token of all rows": {name: round(statistics.median(each), 2) for name, each in found["ms"].items()},
            "tokens a round": found["tokens a round"],
        }
        print(batch, json.dumps(results["batches"][str(batch)], indent=1), flush=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
