"""Who drafts best: the tuned member alone, or the small combination `reference + alpha (tuned - reference)`.

    python examples/benchmarks/drafters.py --deltas FOLDER     # eight minutes on 2 CPU cores; more if the deltas are not in FOLDER yet

Two families. The embedded one, with its own tuned member and with two that learnt through the base (trained here, 1,600 steps each, if
FOLDER has none). And one with the costs of real models, whose tuned member differs by as much more as the strength is smaller: alone it
disagrees with the combination, and how often the small combination agrees is set.

For each delta and strength, one after the other and several times over: plain EFT, the tuned member and the small combination with blocks
of four, and the automatic schedule, which chooses among them. Writes `drafters.json` and `drafters.png` beside this file.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from matplotlib.figure import Figure
from speed_family import VOCAB, find_dial, set_dial, speed_family
from transformers import AutoModelForCausalLM, set_seed
from transformers.utils import logging

from hf_eft import EFTForCausalLM, tiny
from hf_eft.evaluation import plots

BLOCK = 4
STRENGTHS = (0.25, 0.5, 1.0)
WAYS = ("plain", "tuned", "small combination", "automatic")
STEPS, PEAK, SEED = 1600, 2e-3, 20


def learnt_through(base: Any, reference: Any, tokenizer: Any, alpha: float, folder: Path) -> Any:
    """A small model that learnt through the base at a strength, on the data with which the tuned member was tuned; kept in a folder."""
    path = folder / f"through-{alpha:g}"
    if not (path / "config.json").is_file():
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "replication"))
        from make_tiny import BATCH, packed, train
        from world import World

        set_seed(0)
        learner, world, half = copy.deepcopy(reference).requires_grad_(True), World.make(0), BATCH // 2
        answers = packed(world.finetuning(random.Random(SEED)), tokenizer)
        replay = packed(world.pretraining(random.Random(SEED + 1)), tokenizer)
        for frozen in (base, reference):
            frozen.requires_grad_(False)
        model = EFTForCausalLM.from_models(base, tuned=learner, reference=reference, alpha=alpha)

        def loss() -> torch.Tensor:
            ids = torch.cat([next(answers)[:half], next(replay)[:half]])
            return model(input_ids=ids, labels=ids).loss

        train(learner, loss, STEPS, PEAK, f"through the base at {alpha:g}").save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path)


def embedded(deltas: Path) -> list[tuple[str, EFTForCausalLM, list[dict[str, Any]]]]:
    """Each delta at each strength, and questions one by one."""
    base, tuned, reference, tokenizer = tiny.load()
    through = {f"through the base at {a:g}": learnt_through(base, reference, tokenizer, a, deltas) for a in (0.25, 0.5)}
    questions = random.Random(1).sample(tiny.questions(), 12)
    texts = [tokenizer(q.prompt, return_tensors="pt", return_token_type_ids=False) for q in questions]
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": tokenizer.eos_token_id}
    inputs = [{**text, **options} for text in texts]
    return [
        (name, EFTForCausalLM.from_models(base, tuned=delta, reference=reference, alpha=alpha), inputs)
        for name, delta in {"ordinary tuning": tuned, **through}.items()
        for alpha in STRENGTHS
    ]


def with_real_costs(agreement: float = 0.88) -> list[tuple[str, EFTForCausalLM, list[dict[str, Any]]]]:
    """A base of 16 layers over small models of 4, at each strength below 1 (at 1, tuned member and small combination are one)."""
    found = []
    for alpha in (0.25, 0.5, 0.75):
        members = speed_family(16, 4, 384, dial=0.1)
        set_dial(members["tuned"], 0, 1 / alpha)  # what tuning changed, as much more as the strength is smaller
        model = EFTForCausalLM.from_models(**members, alpha=alpha)
        find_dial(model, 4, agreement, predict=small_logits)
        generator = torch.Generator().manual_seed(3)
        ids = [torch.randint(3, VOCAB, (1, 16), generator=generator) for _ in range(3)]
        inputs = [{"input_ids": x, "attention_mask": torch.ones_like(x), "max_new_tokens": 48, "do_sample": False} for x in ids]
        found.append(("16 layers over 4", model, inputs))
    return found


@torch.no_grad()
def small_logits(model: EFTForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """What the small combination says along a text, by its formula."""
    alpha = model.combination.coefficient("tuned")
    reference = model.reference(ids).logits.log_softmax(-1)
    return reference + alpha * (model.tuned(ids).logits.log_softmax(-1) - reference)


@torch.no_grad()
def agreements(model: EFTForCausalLM, inputs: list[dict[str, Any]], texts: list[torch.Tensor]) -> dict[str, float]:
    """Of the tokens of plain decoding, how many each drafter finds the most likely."""
    hits: dict[str, list[float]] = {"tuned": [], "small combination": []}
    for given, text in zip(inputs, texts, strict=True):
        start = given["input_ids"].shape[1]
        for name, logits in (("tuned", model.tuned(text).logits), ("small combination", small_logits(model, text))):
            hits[name] += (logits[:, start - 1 : -1].argmax(-1) == text[:, start:]).float().flatten().tolist()
    return {name: round(statistics.fmean(values), 3) for name, values in hits.items()}


def options(way: str, model: EFTForCausalLM) -> dict[str, Any]:
    if way == "plain":
        return {}
    drafter = model.small_combination if way == "small combination" else model.tuned
    return {"assistant_model": drafter, **({} if way == "automatic" else {"num_assistant_tokens": BLOCK})}


def measure(name: str, model: EFTForCausalLM, inputs: list[dict[str, Any]], repeats: int) -> dict[str, Any]:
    """Tokens per second of each way over all texts, in turn; every way gives the same texts."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    drafted: dict[str, int] = {}
    texts: list[torch.Tensor] = []
    for repeat in range(repeats + 1):  # the first does not count
        spent, tokens = dict.fromkeys(WAYS, 0.0), 0
        for i, given in enumerate(inputs):
            for way in WAYS:
                start = time.perf_counter()
                text = model.generate(**given, **options(way, model))
                spent[way] += time.perf_counter() - start
                if repeat == 0 and way == "plain":
                    texts.append(text)
                if not torch.equal(text, texts[i]):
                    raise RuntimeError(f"{name}: {way} gave other tokens than plain decoding.")
                if way == "automatic" and repeat:
                    for drafter in model.speculation.drafters:
                        drafted[drafter or "nobody"] = drafted.get(drafter or "nobody", 0) + 1
            tokens += texts[i].shape[1] - given["input_ids"].shape[1]
        for way in WAYS if repeat else ():
            rates[way].append(tokens / spent[way])
    over = {way: [a / b for a, b in zip(rates[way], rates["plain"], strict=True)] for way in WAYS[1:]}
    return {
        "delta": name,
        "alpha": model.combination.coefficient("tuned"),
        "agreement": agreements(model, inputs, texts),
        "tokens/s": {way: round(statistics.median(values), 1) for way, values in rates.items()},
        "over plain": {way: [round(f(v), 2) for f in (statistics.median, min, max)] for way, v in over.items()},
        "rounds of the automatic schedule": {name: round(n / sum(drafted.values()), 2) for name, n in sorted(drafted.items())},
    }


def draw(results: list[dict[str, Any]]) -> Figure:
    """Speed over plain decoding, with the range of single runs, and the agreement of both drafters."""
    figure = Figure(figsize=(9, 5.6))
    speed, agreement = figure.subplots(2, 1, sharex=True)
    colours = {
        "tuned": plots.colour("tuned"),
        "small combination": plots.colour("reference"),
        "automatic": plots.colour("combined"),
    }
    for shift, (way, colour) in enumerate(colours.items()):
        for place, result in enumerate(results):
            middle, low, high = result["over plain"][way]
            label = (way if way == "automatic" else f"{way}, blocks of {BLOCK}") if place == 0 else None
            at = place + 0.27 * (shift - 1)
            speed.bar(at, middle, 0.25, yerr=[[middle - low], [high - middle]], color=colour, label=label)
            if way in result["agreement"]:
                agreement.bar(at + 0.13, result["agreement"][way], 0.25, color=colour)
    speed.axhline(1.0, color="0.4", lw=0.8)
    speed.set_ylabel("speed / plain EFT")
    speed.legend(loc="upper left", ncols=3)
    agreement.set_ylabel("agreement")
    agreement.set_xticks(range(len(results)), [f"{r['delta']}\nalpha {r['alpha']:g}" for r in results], rotation=30, ha="right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deltas", type=Path, required=True, help="where deltas that learnt through the base are, or are put")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    logging.set_verbosity_error()
    results = []
    for name, model, inputs in (*embedded(given.deltas), *with_real_costs()):
        results.append(measure(name, model, inputs, given.repeats))
        print(results[-1], flush=True)
    record = {
        "command": "python examples/benchmarks/drafters.py --deltas FOLDER", "machine": machine(), "threads": torch.get_num_threads(),
        "date": str(date.today()), "repeats": given.repeats, "block": BLOCK, "results": results,
    }  # fmt: skip
    with plots.style():
        plots.save(draw(results), given.output.with_suffix(".png"), record)


if __name__ == "__main__":
    main()
