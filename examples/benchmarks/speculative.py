"""What speculation gains, on a family with real costs whose agreement is set.

    python examples/benchmarks/speculative.py            # about 12 minutes on 2 CPU cores

For each setting (how many times deeper the large model is, agreement, batch, prompt) it times, one after the other and several times
over: the large and the small model alone, plain EFT with wrapper and add-on, transformers' own assisted decoding of the same wrapper
with a copy of the tuned model, and speculation with fixed blocks and the automatic one. Beside it stands the limit: the tokens per
round that were kept, over the bare forwards of the parts, measured in the same run. Writes `speculative.json` and `speculative.png`
beside this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from speed_family import VOCAB, find_dial, speed_family
from transformers import DynamicCache, GenerationMixin
from transformers.utils import logging

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

LAYERS, WIDTH, TOKENS = 24, 512, 64
# (large layers / small layers, agreement, batch, prompt)
SETTINGS = [(4, 0.91, 1, 16), (4, 0.94, 1, 16), (12, 0.91, 1, 16), (4, 0.91, 4, 16), (1.5, 0.4, 1, 16)]
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
    model(torch.randint(3, VOCAB, (batch, context)), past_key_values=cache, use_cache=True, logits_to_keep=1)
    times = []
    for _ in range(repeats):
        block = torch.randint(3, VOCAB, (batch, positions))
        start = time.perf_counter()
        model(block, past_key_values=cache, use_cache=True)
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


def measure(ratio: float, agreement: float, batch: int, prompt: int, repeats: int) -> dict[str, Any]:
    small_layers = round(LAYERS / ratio)
    models = speed_family(LAYERS, small_layers, WIDTH, dial=0.1)
    model = EFTForCausalLM.from_models(**models)
    found = find_dial(model, small_layers, agreement)
    theirs, copied = Theirs.from_models(**models), copy.deepcopy(models["tuned"])
    add_on = EFTLogitsProcessor(models["tuned"], models["reference"], pad_token_id=-1)
    ids = torch.randint(3, VOCAB, (batch, prompt), generator=torch.Generator().manual_seed(2))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}

    def run(which: Any, **options: Any) -> Callable[[int], torch.Tensor]:
        return lambda tokens: which.generate(**inputs, max_new_tokens=tokens, **options)

    rows = {
        "large alone": run(model.base),
        "small alone": run(model.tuned),
        "plain EFT": run(model),
        "plain EFT, add-on": run(model.base, logits_processor=[add_on]),
        **{f"block {k}": run(model, assistant_model=model.tuned, num_assistant_tokens=k) for k in (2, 4, 8, 16)},
        "automatic": run(model, assistant_model=model.tuned),
    }
    if batch == 1:
        for k in (4, 8):
            copied_k = copy.deepcopy(copied)
            copied_k.generation_config.num_assistant_tokens = k
            rows[f"transformers, block {k}"] = run(theirs, assistant_model=copied_k)
    times: dict[str, list[float]] = {name: [] for name in rows}
    reports, expected = {}, rows["plain EFT"](TOKENS)
    for _ in range(repeats):
        for name, call in rows.items():
            # Without the prompt, which is the same work for all that combine.
            start = time.perf_counter()
            call(1)
            first = time.perf_counter() - start
            start = time.perf_counter()
            ids_out = call(TOKENS)
            times[name].append((time.perf_counter() - start - first) / (TOKENS - 1))
            if name.startswith(("block", "auto")):
                reports[name] = model.speculation
                if not torch.equal(ids_out, expected):
                    raise AssertionError(f"{name} gave other tokens than plain decoding")
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        against: [p / a for p, a in zip(times[against], times["automatic"], strict=True)]
        for against in ("plain EFT", "large alone")
    }
    report = reports["automatic"]
    best_possible = limit(models, report, batch, prompt + TOKENS // 2)
    result: dict[str, Any] = {
        "large step / small step": seconds["large alone"] / seconds["small alone"],
        "agreement": found,
        "batch": batch,
        "prompt": prompt,
        "tokens/s": {name: batch / value for name, value in seconds.items()},
        "automatic / plain EFT": statistics.median(ratios["plain EFT"]),
        "automatic / plain EFT, all": [round(r, 2) for r in ratios["plain EFT"]],
        "automatic / large alone": statistics.median(ratios["large alone"]),
        "automatic / large alone, all": [round(r, 2) for r in ratios["large alone"]],
        "limit, tokens/s": batch / best_possible,
        "automatic / limit": best_possible / seconds["automatic"],
        "tokens per round": report.tokens / batch / report.rounds,
        "acceptance": [round(a, 2) for a in report.acceptance],
        "blocks": report.blocks,
        "paper's best, scaled to the same plain EFT": batch / seconds["plain EFT"] * PAPER["best block"] / PAPER["plain EFT"],
    }
    if batch == 1:
        best = min(value for name, value in seconds.items() if name.startswith("transformers"))
        result["automatic / transformers' best"] = best / seconds["automatic"]
    return result


def draw(results: dict[str, Any], path: Path) -> None:
    """Tokens per second of every row, a panel for each setting."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = results["settings"]
    figure, panels = plt.subplots(1, len(settings), figsize=(3.6 * len(settings), 5.2), sharey=True, layout="constrained")
    names = list(settings[0]["tokens/s"])
    for panel, setting in zip(panels, settings, strict=True):
        values = [setting["tokens/s"].get(name, 0.0) for name in names]
        colors = ["#1f77b4" if n == "automatic" else "#9ecae1" if n.startswith("block") else "#bbbbbb" for n in names]
        panel.barh(names, values, color=colors)
        panel.axvline(setting["limit, tokens/s"], color="black", linestyle=":", label="limit of the parts")
        panel.invert_yaxis()
        title = [
            f"large = {setting['large step / small step']:.1f} small steps",
            f"agreement {setting['agreement']:.2f}, batch {setting['batch']}, prompt {setting['prompt']}",
            f"automatic: {setting['automatic / plain EFT']:.2f}x plain, {setting['automatic / large alone']:.2f}x large",
        ]
        panel.set_title("\n".join(title), fontsize=9)
        panel.set_xlabel("tokens/s")
    panels[0].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"Speculative EFT, greedy. {results['machine']}, {results['date']}", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settings", type=int, nargs="*", default=list(range(len(SETTINGS))), help="which settings, by number")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    logging.set_verbosity_error()  # transformers' own assistant call logs a deprecation
    results: dict[str, Any] = {
        "machine": machine(),
        "date": date.today().isoformat(),
        "command": "python examples/benchmarks/speculative.py",
    }
    results["settings"] = []
    for i in args.settings:
        torch.manual_seed(0)
        results["settings"].append(measure(*SETTINGS[i], repeats=args.repeats))
        shown = {k: v for k, v in results["settings"][-1].items() if k != "blocks"}
        print(json.dumps(shown, indent=1), flush=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
