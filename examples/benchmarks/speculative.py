"""What speculation gains, on a family with real costs whose agreement is set.

    python examples/benchmarks/speculative.py            # about an hour on 2 CPU cores

For each setting (how many times deeper the large model is, agreement, batch, prompt) it times, one after the other and several times
over: the large and the small model alone, plain EFT with wrapper and add-on, transformers' own assisted decoding of the same wrapper
with a copy of the tuned model, and speculation with fixed blocks and the automatic one. Beside it stands the limit: the tokens per
round that were kept, over the bare forwards of the parts, measured in the same run. Peak memory is that of a process of its own.
Writes `speculative.json` and `speculative.png` beside this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from matplotlib.figure import Figure
from speed_family import VOCAB, find_dial, speed_family
from timing import seconds
from transformers import DynamicCache, GenerationMixin
from transformers.utils import logging

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.decoding.speculative.schedule import Report
from hf_eft.evaluation import plots
from hf_eft.members.releases import CACHE

WIDTH, TOKENS = 512, 48
BLOCKS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Setting:
    """How many times deeper the large model is than the small one, how often they agree, and what is decoded."""

    deeper: float
    agreement: float
    batch: int = 1
    prompt: int = 16
    prompts: int = 3  # one after the other: how often a single text agrees is a matter of luck
    layers: int = 24  # of the large model


SETTINGS = [
    Setting(4, 0.91),
    Setting(4, 0.94),
    Setting(8, 0.91),
    Setting(16, 0.91, layers=32),
    Setting(4, 0.8),
    Setting(4, 0.6),
    Setting(4, 0.91, batch=4),
    Setting(4, 0.91, batch=16, prompts=1),
    Setting(4, 0.91, prompt=1024, prompts=2),
    Setting(4, 0.91, batch=4, prompt=1024, prompts=1),
    Setting(1.5, 0.4),
]
# The paper's table for Llama-2, 7B drafting for 70B (HH): tokens/s without and with its best block, and of the plain large model.
PAPER = {"plain EFT": 6.0, "best block": 13.8, "large alone": 9.3}


class Theirs(EFTForCausalLM):
    """The same wrapper, with transformers' assisted decoding in place of ours."""

    def _assisted_decoding(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return GenerationMixin._assisted_decoding(self, input_ids, **kwargs)


@torch.no_grad()
def bare(model: Any, batch: int, context: int, positions: int, repeats: int = 9) -> float:
    """Median seconds of a forward of `positions` tokens behind `context` cached ones."""
    cache = DynamicCache(config=model.config)
    model(torch.randint(3, VOCAB, (batch, context)), use_cache=True, logits_to_keep=1, **{CACHE: cache})
    times = []
    for _ in range(repeats):
        block = torch.randint(3, VOCAB, (batch, positions))
        start = time.perf_counter()
        model(block, use_cache=True, **{CACHE: cache})
        times.append(time.perf_counter() - start)
        cache.crop(-positions)
    return statistics.median(times)


def limit(models: dict[str, Any], report: Any, batch: int, context: int) -> float:
    """Seconds per token and row if every round took just the bare forwards of its parts, for the blocks that were chosen."""
    step = bare(models["tuned"], batch, context, 1)
    costs = {
        b: bare(models["base"], batch, context, b + 1) + bare(models["reference"], batch, context, b + 1)
        for b in set(report.blocks)
    }
    rounds = sum(block * step + costs[block] for block in report.blocks) + report.bonus_steps * step
    return rounds / (report.tokens / batch)


def names(setting: Setting) -> list[str]:
    """The rows of a setting. (transformers' assisted decoding refuses batches.)"""
    theirs = [f"transformers, block {k}" for k in (4, 8)] if setting.batch == 1 else []
    alone = ["large alone", "small alone", "plain EFT", "plain EFT, add-on"]
    return [*alone, *(f"block {k}" for k in BLOCKS), "automatic", *theirs]


def system(name: str, models: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model whose `generate` a row calls, and its options."""
    if name.endswith("alone"):
        return models["base" if name.startswith("large") else "tuned"], {}
    if name.endswith("add-on"):
        return models["base"], {"logits_processor": [EFTLogitsProcessor(models["tuned"], models["reference"], pad_token_id=-1)]}
    block = int(name.split()[-1]) if "block" in name else None
    if name.startswith("transformers"):
        copied = copy.deepcopy(models["tuned"])
        copied.generation_config.num_assistant_tokens = block
        return Theirs.from_models(**models), {"assistant_model": copied}
    model = EFTForCausalLM.from_models(**models)
    if name == "plain EFT":
        return model, {}
    return model, {"assistant_model": model.tuned, **({} if block is None else {"num_assistant_tokens": block})}


def family(setting: Setting) -> tuple[dict[str, Any], float]:
    """The members and how often they agree."""
    small_layers = round(setting.layers / setting.deeper)
    models = speed_family(setting.layers, small_layers, WIDTH, dial=0.1)
    return models, find_dial(EFTForCausalLM.from_models(**models), small_layers, setting.agreement)


def prompts(setting: Setting) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCAB, (setting.batch, setting.prompt), generator=generator) for _ in range(setting.prompts)]


def measure(setting: Setting, repeats: int) -> dict[str, Any]:
    models, found = family(setting)
    rows = {name: system(name, models) for name in names(setting)}
    times: dict[str, list[float]] = {name: [] for name in rows}  # seconds per token, of every run
    firsts: dict[str, list[float]] = {name: [] for name in rows}
    reports: dict[str, list[Report]] = {}
    expected: dict[int, torch.Tensor] = {}
    # Seconds per token, measured after each run of the automatic schedule for the blocks that it chose.
    limits: list[float] = []
    for _ in range(repeats):
        for i, ids in enumerate(prompts(setting)):
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
            for name, (model, options) in rows.items():
                firsts[name].append(seconds(lambda m=model, x=inputs, o=options: m.generate(**x, **o, max_new_tokens=1)))
                start = time.perf_counter()
                tokens = model.generate(**inputs, **options, max_new_tokens=TOKENS)
                # Without the prompt, which is the same work for all that combine.
                times[name].append((time.perf_counter() - start - firsts[name][-1]) / (TOKENS - 1))
                if name == "plain EFT":
                    expected[i] = tokens
                if name.startswith(("block", "auto")):
                    reports.setdefault(name, []).append(model.speculation)
                    if not torch.equal(tokens, expected[i]):
                        raise AssertionError(f"{name} gave other tokens than plain decoding")
            mine = reports["automatic"][-1]
            limits.append(limit(models, mine, setting.batch, setting.prompt + TOKENS // 2))
    return summary(setting, found, times, firsts, reports, limits)


def summary(
    setting: Setting,
    agreement: float,
    times: dict[str, list[float]],
    firsts: dict[str, list[float]],
    reports: dict[str, list[Report]],
    limits: list[float],
) -> dict[str, Any]:
    """Tokens per second over all prompts, and how automatic speculation stands beside the others in each run."""
    batch = setting.batch

    def typical(values: list[float]) -> float:
        """The mean over the prompts of each one's median run: a burst of other work on the machine moves no ratio."""
        return statistics.fmean(statistics.median(values[i :: setting.prompts]) for i in range(setting.prompts))

    spent = {name: typical(values) for name, values in times.items()}
    against_limit = [possible / taken for possible, taken in zip(limits, times["automatic"], strict=True)]
    result: dict[str, Any] = {
        **asdict(setting),
        "agreement": agreement,
        "large step / small step": spent["large alone"] / spent["small alone"],
        "tokens/s": {name: batch / value for name, value in spent.items()},
        "seconds to the first token": {name: statistics.median(values) for name, values in firsts.items()},
        "limit, tokens/s": batch / typical(limits),
        "automatic / limit": typical(limits) / spent["automatic"],
        "automatic / limit, runs": [round(min(against_limit), 2), round(max(against_limit), 2)],
        "paper's best, scaled to the same plain EFT": batch / spent["plain EFT"] * PAPER["best block"] / PAPER["plain EFT"],
    }
    for against in ("plain EFT", "large alone"):
        runs = [p / a for p, a in zip(times[against], times["automatic"], strict=True)]
        result[f"automatic / {against}"] = spent[against] / spent["automatic"]
        result[f"automatic / {against}, runs"] = [round(min(runs), 2), round(max(runs), 2)]
    if batch == 1:
        best = min(value for name, value in spent.items() if name.startswith("transformers"))
        result["automatic / transformers' best"] = best / spent["automatic"]
    for name, found in reports.items():
        mine = found[-setting.prompts :]
        looked = [sum(r.drafted[0] for r in mine if r.drafted), sum(r.accepted[0] for r in mine if r.drafted)]
        result.setdefault("tokens per round", {})[name] = sum(r.tokens for r in mine) / batch / sum(r.rounds for r in mine)
        result.setdefault("first drafted token kept", {})[name] = looked[1] / max(1, looked[0])
        result.setdefault("mean block", {})[name] = statistics.fmean(b for r in mine for b in r.blocks)
    return result


def peak_memory(setting: Setting, name: str) -> float:
    """MiB that a process of its own needs at most for the models and a call, beyond what it had before."""
    code = f"""
import resource, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from speculative import *
from speed_family import llama
def rss(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
warm = llama(1, 64); warm.generate(torch.tensor([[1, 2]]), max_new_tokens=4); del warm
before, setting, name = rss(), {setting!r}, {name!r}
small, large = round(setting.layers / setting.deeper), setting.layers
if name.endswith("alone"):
    model, options = llama(large if name.startswith("large") else small, WIDTH), {{}}
else:
    models = {{"base": llama(large, WIDTH), "tuned": llama(small, WIDTH), "reference": llama(small, WIDTH)}}
    model, options = system(name, models)
ids = prompts(setting)[0]
model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, **options)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
"""
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # freed memory goes back at once
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, env=os.environ | returning)
    return float(done.stdout)


def draw(results: dict[str, Any], path: Path) -> None:
    """Tokens per second of every row, a panel for each setting."""
    settings = [setting for setting in results["settings"] if setting is not None]
    columns = min(4, len(settings))
    lines = -(-len(settings) // columns)
    names = list(settings[0]["tokens/s"])
    automatic, blocks, others = (plots.colour(c) for c in ("combined", "base", "reference"))
    with plots.style():
        figure = Figure(figsize=(3.8 * columns, 4.4 * lines))
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
        for panel in panels[len(settings) :]:
            panel.set_visible(False)
        for panel, setting in zip(panels, settings, strict=False):
            values = [setting["tokens/s"].get(name, 0.0) for name in names]
            colors = [automatic if n == "automatic" else blocks if n.startswith("block") else others for n in names]
            panel.barh(names, values, color=colors)
            panel.axvline(setting["limit, tokens/s"], color="black", linestyle=":", label="limit of the parts")
            title = [
                f"large = {setting['large step / small step']:.1f} small steps",
                f"agreement {setting['agreement']:.2f}, batch {setting['batch']}, prompt {setting['prompt']}",
                f"automatic: {setting['automatic / plain EFT']:.2f}x plain, {setting['automatic / large alone']:.2f}x large",
            ]
            panel.set_title("\n".join(title))
            panel.set_xlabel("tokens/s")
        panels[0].invert_yaxis()  # shared
        panels[0].legend(loc="lower right")
        dates = sorted(setting["date"] for setting in settings)
        figure.suptitle(f"Speculative EFT, greedy. {settings[0]['machine']}, {dates[0]} to {dates[-1]}")
        plots.save(figure, path, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--settings",
        type=int,
        nargs="*",
        default=list(range(len(SETTINGS))),
        help="which settings, by number; the others are kept",
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    logging.set_verbosity_error()  # transformers' own assistant call logs a deprecation
    results: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
    results |= {"command": "python examples/benchmarks/speculative.py"}
    if 0 in args.settings:
        memory = (
            "large alone",
            "small alone",
            "plain EFT",
            "plain EFT, add-on",
            "block 8",
            "automatic",
            "transformers, block 8",
        )
        results["peak memory, MiB"] = {name: round(peak_memory(SETTINGS[0], name)) for name in memory}
    found = results.setdefault("settings", [])
    found += [None] * (len(SETTINGS) - len(found))
    for i in args.settings:
        torch.manual_seed(0)
        found[i] = {"date": date.today().isoformat(), "machine": machine(), **measure(SETTINGS[i], repeats=args.repeats)}
        print(json.dumps(found[i], indent=1), flush=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
