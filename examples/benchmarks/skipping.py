"""What members that are not run save, and whether the tokens are the same.

    python examples/benchmarks/skipping.py                              # 1,000 questions: about 40 minutes on an idle core
    python examples/benchmarks/skipping.py --prompts 60 --timed 10      # a short look

Questions to the embedded family one by one, greedy. For every recipe under which it is proved that members have no say at times: forwards
of the small members that were saved, by why, and how many answers are those of all members, token by token. For the bound that recent steps
say, which is approximate: the same for several settings, with the error: answers that differ, and what became of facts and manner. Then the
time of some of these calls beside that of plain decoding, of drafts and of the large model alone, all in turn. Writes `skipping.json` and
`skipping.png` beside this file. What the file has of as many prompts is not asked again: delete it to begin anew.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from matplotlib.figure import Figure
from transformers.utils import logging

from hf_eft import Combination, Confidence, EFTForCausalLM, Skipping, Truncation, tiny
from hf_eft.evaluation import plots
from hf_eft.files import as_json

TOKENS = 24


UNSURE = Confidence(threshold=0.9)  # the full strength where the base is unsure, none elsewhere

# Recipes under which members have no say at times, by what says so.
PROVED: dict[str, Combination] = {
    "truncation: base, 0.9": Combination.emulate(alpha=1.0, truncation=Truncation("base", 0.9)),
    "truncation: base, 0.99": Combination.emulate(alpha=1.0, truncation=Truncation("base", 0.99)),
    "truncation: plausible, 0.1": Combination.emulate(alpha=1.0, truncation=Truncation("plausible", 0.1)),
    "a rule of the base": Combination.emulate(alpha=UNSURE),
    "a rule that hands over": Combination({"base": 1 - UNSURE, "tuned": UNSURE}),
    "a schedule: 6 tokens": Combination.emulate(alpha=[1.0] * 6 + [0.0]),
}
PLAIN = Combination.emulate(alpha=1.0)
APPROXIMATE = [(2, 1.0), (4, 1.0), (4, 1.5), (8, 1.0), (8, 1.5)]  # recent, factor


def answers(
    model: EFTForCausalLM, inputs: Sequence[Any], tally: dict[str, Any] | None = None, **options: Any
) -> list[list[int]]:
    """What follows each prompt; forwards, and why members were left out, are added up."""
    found = []
    for given in inputs:
        ids = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, **options)
        found.append(ids[0, given["input_ids"].shape[1] :].tolist())
        if tally is not None and (report := model.skipping) is not None:
            tally["steps"] = tally.get("steps", 0) + report.steps
            tally["forwards"] = tally.get("forwards", 0) + report.forwards["tuned"]
            for why, count in report.skipped["tuned"].items():
                tally[why] = tally.get(why, 0) + count
            tally.setdefault("blocks", []).extend(report.blocks["tuned"])
    return found


def compared(
    model: EFTForCausalLM, questions: Sequence[Any], inputs: Sequence[Any], tokenizer: Any, expected: Sequence[list[int]],
    asked: Any,
) -> dict[str, Any]:  # fmt: skip
    """A way of skipping beside all members."""
    tally: dict[str, Any] = {}
    got = answers(model, inputs, tally, skipping=asked)
    blocks = tally.pop("blocks")

    def share(judge: Any, texts: Sequence[list[int]]) -> float:
        said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]
        return round(statistics.fmean(judge(question, text) for question, text in zip(questions, said, strict=True)), 4)

    pairs = zip(got, expected, strict=True)
    first = [
        n for a, b in pairs if (n := next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)) is not None
    ]
    return {
        "answers": len(got),
        "equal answers": sum(a == b for a, b in zip(got, expected, strict=True)),
        "first other token, median": statistics.median(first) if first else None,
        "forwards of a small member": tally["forwards"],
        "of": tally["steps"],
        "saved": round(1 - tally["forwards"] / tally["steps"], 4),
        "steps left out, by why": {why: n for why, n in tally.items() if why not in ("steps", "forwards")},
        "tokens in a block, mean": round(statistics.fmean(blocks), 2) if blocks else None,
        "facts: all members, skipping": [share(lambda q, t: q.is_right(t), texts) for texts in (expected, got)],
        "manner: all members, skipping": [share(lambda q, t: q.is_in_style(t), texts) for texts in (expected, got)],
    }  # fmt: skip


def timed(models: Mapping[str, tuple[Any, dict[str, Any]]], inputs: Sequence[Any], rounds: int) -> dict[str, Any]:
    """Milliseconds a token, all in turn: the median over rounds, and the range."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):  # the first does not count
        spent, tokens = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0)
        for given in inputs:
            for name, (model, options) in models.items():
                start = time.perf_counter()
                ids = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, **options)
                spent[name] += time.perf_counter() - start
                tokens[name] += ids.shape[1] - given["input_ids"].shape[1]
        for name in models if number else ():
            found[name].append(1000 * spent[name] / tokens[name])
    return {name: [round(how(values), 3) for how in (statistics.median, min, max)] for name, values in found.items()}


def draw(record: dict[str, Any]) -> Figure:
    """Forwards saved, and time over that of all members."""
    figure = Figure(figsize=(9, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    both = {**record["proved"], **{f"recent: {name}": each for name, each in record["approximate"].items()}}
    colours = [plots.colour("combined")] * len(record["proved"]) + [plots.colour("tuned")] * len(record["approximate"])
    left.barh([*both][::-1], [each["saved"] for each in both.values()][::-1], color=colours[::-1])
    for place, each in enumerate([*both.values()][::-1]):
        left.text(each["saved"], place, f" {each['equal answers']}/{each['answers']} equal", va="center", fontsize=7)
    left.set_xlim(0, 1.15)
    left.set_xlabel("forwards of a small member that were saved")
    times = record["milliseconds a token: median, least, most"]
    right.barh([*times][::-1], [each[0] for each in times.values()][::-1], color=plots.colour("base"))
    right.set_xlabel("milliseconds a token")
    return figure


def begun(path: Path, prompts: int) -> dict[str, Any]:
    """What there is already of as many prompts."""
    record: dict[str, Any] = {
        "command": f"python examples/benchmarks/skipping.py --prompts {prompts}",
        "machine": machine(), "threads": 1, "date": str(date.today()), "tokens at most": TOKENS, "proved": {}, "approximate": {},
    }  # fmt: skip
    known = json.loads(path.read_text()) if path.exists() else {}
    return known if known.get("command") == record["command"] else record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=40, help="how many of them are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    base, tuned, reference, tokenizer = tiny.load()
    questions = random.Random(0).sample(tiny.questions(), given.prompts)
    inputs = [tokenizer(question.prompt, return_tensors="pt", return_token_type_ids=False) for question in questions]

    def combined(recipe: Combination) -> EFTForCausalLM:
        return EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=recipe)

    record = begun(given.output, given.prompts)

    def keep(part: str, name: str, ask: Callable[[], dict[str, Any]]) -> None:
        if name not in record[part]:
            record[part][name] = ask()
            given.output.write_text(as_json(record))
            print(name, record[part][name], flush=True)

    for name, recipe in PROVED.items():
        model = combined(recipe)
        keep("proved", name, lambda m=model: compared(m, questions, inputs, tokenizer, answers(m, inputs), True))
    model = combined(PLAIN)
    expected = functools.cache(lambda: answers(model, inputs))
    for recent, factor in APPROXIMATE:
        asked = Skipping(recent=recent, factor=factor)
        name = f"{recent} steps, {factor:g} times"
        keep("approximate", name, lambda a=asked: compared(model, questions, inputs, tokenizer, expected(), a))
    cut = combined(PROVED["truncation: base, 0.9"])
    ruled = combined(PROVED["a rule of the base"])
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "large model alone": (base, {}),
        "plain EFT": (model, {}),
        "drafts by the tuned member": (model, {"assistant_model": tuned}),
        "recent: 4 steps": (model, {"skipping": Skipping(recent=4)}),
        "truncation 0.9, all members": (cut, {}),
        "truncation 0.9, skipping": (cut, {"skipping": True}),
        "truncation 0.9, drafts": (cut, {"assistant_model": tuned}),
        "rule of the base, all members": (ruled, {}),
        "rule of the base, skipping": (ruled, {"skipping": True}),
    }
    record["timed"] = f"{given.timed} prompts, {given.rounds} rounds in turn"
    record["milliseconds a token: median, least, most"] = timed(ways, inputs[: given.timed], given.rounds)
    print(record["milliseconds a token: median, least, most"])
    with plots.style():
        plots.save(draw(record), given.output.with_suffix(".png"), record)


if __name__ == "__main__":
    main()
