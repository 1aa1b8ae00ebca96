"""What roll-back costs members with recurrent states: a hybrid family beside one of attention layers only.

    python examples/benchmarks/recurrent.py            # about ten minutes on 2 CPU cores

Both families have the same widths and depths, and an agreement between drafter and target that is set. Timed one after the other and
several times over: the large model alone, plain EFT, and speculation with a fixed and with the automatic block. Beside them stands how
long a round's parts took: what drafts, what verifies, and what is put back and read again. Writes `recurrent.json` and `recurrent.png`
beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import machine
from matplotlib.figure import Figure
from speed_family import VOCAB, find_dial, hybrid, llama, speed_family
from transformers.utils import logging

import hf_eft.decoding.speculative
from hf_eft import EFTForCausalLM
from hf_eft.evaluation import plots

LAYERS, SMALL, WIDTH, TOKENS = 16, 4, 384, 48
WAYS: dict[str, dict[str, Any]] = {"plain EFT": {}, "block 4": {"num_assistant_tokens": 4}, "automatic": {}}
FAMILIES = {"attention": llama, "hybrid": hybrid}


def timed(model: EFTForCausalLM, way: str, ids: torch.Tensor) -> dict[str, float]:
    """Tokens per second of one call, its tokens, and the share of it that was spent reading again."""
    again = 0.0
    read_again = hf_eft.decoding.speculative.read_again

    def watched(*args: Any, **kwargs: Any) -> None:
        nonlocal again
        start = time.perf_counter()
        read_again(*args, **kwargs)
        again += time.perf_counter() - start

    options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None}
    which: Any = model.base if way == "large alone" else model
    if way in WAYS and way != "plain EFT":
        options |= {"assistant_model": model.tuned, **WAYS[way]}
    with mock.patch.object(hf_eft.decoding.speculative, "read_again", watched):
        start = time.perf_counter()
        out = which.generate(ids, **options)
        seconds = time.perf_counter() - start
    report = model.speculation if "assistant_model" in options else None
    return {
        "tokens/s": ids.shape[0] * TOKENS / seconds,
        "read again": again / seconds,
        "tokens a round": report.tokens_per_round / ids.shape[0] if report else 1.0,
        "text": hash(tuple(out.flatten().tolist())),
    }


def measure(family: str, agreement: float, batch: int, repeats: int) -> dict[str, Any]:
    """All ways of decoding with one family, in turn."""
    members = speed_family(LAYERS, SMALL, WIDTH, 0.1, make=FAMILIES[family])
    model = EFTForCausalLM.from_models(members["base"], tuned=members["tuned"], reference=members["reference"])
    measured = find_dial(model, SMALL, agreement)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ("large alone", *WAYS)}
    for repeat in range(repeats):
        ids = torch.randint(3, VOCAB, (batch, 16), generator=torch.Generator().manual_seed(repeat))
        for way, done in runs.items():
            done.append(timed(model, way, ids))
        if len({done[-1]["text"] for way, done in runs.items() if way != "large alone"}) > 1:
            raise RuntimeError(f"The ways of decoding gave different texts: {family}, batch {batch}.")
    rates = {way: [run["tokens/s"] for run in done] for way, done in runs.items()}
    ratios = {way: [a / b for a, b in zip(rates[way], rates["plain EFT"], strict=True)] for way in runs}
    return {
        "family": family, "batch": batch, "agreement": round(measured, 3),
        "tokens/s": {way: round(statistics.median(values), 2) for way, values in rates.items()},
        "ratio to plain EFT": {way: [round(f(v), 3) for f in (statistics.median, min, max)] for way, v in ratios.items()},
        "read again": {way: round(statistics.median(run["read again"] for run in runs[way]), 3) for way in WAYS},
        "tokens a round": {way: round(statistics.median(run["tokens a round"] for run in runs[way]), 2) for way in WAYS},
    }  # fmt: skip


def draw(results: list[dict[str, Any]]) -> Figure:
    """Ratios to plain EFT, by family and batch, with the range of single runs."""
    figure = Figure(figsize=(8, 3.2))
    axes = figure.add_subplot()
    for place, result in enumerate(results):
        for shift, (way, colour) in enumerate((("block 4", plots.colour("base")), ("automatic", plots.colour("combined")))):
            middle, low, high = result["ratio to plain EFT"][way]
            axes.bar(
                place + 0.38 * shift - 0.19, middle, 0.34, yerr=[[middle - low], [high - middle]], color=colour,
                label=way if place == 0 else None,
            )  # fmt: skip
    axes.axhline(1.0, color="0.4", lw=0.8)
    axes.set_xticks(range(len(results)), [f"{r['family']}\nbatch {r['batch']}, {r['agreement']:.2f}" for r in results])
    axes.set_ylabel("speed / plain EFT")
    axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    logging.set_verbosity_error()
    results = []
    for batch in (1, 4):
        for agreement in (0.9, 0.4):
            for family in FAMILIES:
                results.append(measure(family, agreement, batch, given.repeats))
                print(json.dumps(results[-1]), flush=True)
    record = {"machine": machine(), "date": str(date.today()), "tokens": TOKENS, "results": results}
    with plots.style():
        plots.save(draw(results), given.output.with_suffix(".png"), record)


if __name__ == "__main__":
    main()
