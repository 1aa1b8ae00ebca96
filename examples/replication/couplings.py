"""
Temperatures and couplings on the replication's families: what sampled answers are worth, and whether drafts change it.

    python examples/replication/couplings.py --work <folder of rules/run.py or through/run.py>

The test people are asked with the large base and the small ordinary delta: without drafts, and with drafts of four tokens by the small
tuned model under both couplings. `"match"` must give the very answers; `"reject"` others of the same distribution. Writes
`couplings.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [*(str(HERE / name) for name in ("rules", "through", "scales", ".")), str(HERE.parent / "benchmarks")]

import torch  # noqa: E402
from behaviours import SECRET, judge  # noqa: E402
from machine import machine  # noqa: E402
from measure import shares  # noqa: E402
from resampling import of_difference, of_means, of_share  # noqa: E402
from sizes import Effort, Family  # noqa: E402

from hf_eft import Combination, EFTForCausalLM  # noqa: E402

TEMPERATURES = (0.5, 0.7, 1.0)
BLOCK = 4
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"coupling": "match"},  # with noise by seed, row and position, whether there are drafts or not
    "match": {"coupling": "match", "num_assistant_tokens": BLOCK},
    "reject": {"coupling": "reject", "num_assistant_tokens": BLOCK},
}
_BATCH = 60


def answers(family: Family, temperature: float, way: str, alpha: float) -> tuple[list[Any], list[str], float]:
    """Questions, sampled answers, and the share of the drafts that was kept."""
    base, tuned, reference = family.model("large", "base"), family.model("small", "helpful"), family.model("small", "base")
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=Combination.emulate(alpha=alpha))
    questions = [q for q in family.world.questions(family.world.test) if q.attribute != SECRET]
    tokenizer, replies, kept, drafted = family.tokenizer, [], 0, 0
    for start in range(0, len(questions), _BATCH):
        part = questions[start : start + _BATCH]
        inputs = tokenizer([q.prompt for q in part], return_tensors="pt", padding=True, return_token_type_ids=False)
        torch.manual_seed(1_000_000 * family.seed + start)
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, **WAYS[way]}
        if WAYS[way]["coupling"] == "match":
            options["seed"] = [1_000_000 * family.seed + start + i for i in range(len(part))]
        if way != "plain":
            options["assistant_model"] = model.tuned
        ids = model.generate(**inputs, max_new_tokens=20, **options)
        replies += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        if way != "plain":
            kept += sum(model.speculation.accepted)
            drafted += sum(model.speculation.drafted)
    return questions, replies, kept / drafted if drafted else float("nan")


def measured(families: Sequence[Family], alpha: float) -> dict[str, Any]:
    """By temperature and way, over the seeds: facts and form, how many answers are those without drafts, and how much of drafts is kept."""
    found: dict[str, Any] = {}
    for temperature in TEMPERATURES:
        of_way = {way: [answers(family, temperature, way, alpha) for family in families] for way in WAYS}
        judged = {way: [judge(questions, replies) for questions, replies, _ in runs] for way, runs in of_way.items()}
        for way, runs in of_way.items():
            row: dict[str, Any] = {}
            for metric in ("factuality", "helpfulness"):
                scores, plain = ([each[metric] for each in judged[which]] for which in (way, "plain"))
                row[metric] = list(of_share(scores))
                row[f"{metric} - plain's"] = list(of_difference(scores, plain))
            same = [
                [float(a == b) for a, b in zip(run[1], plain[1], strict=True)]
                for run, plain in zip(runs, of_way["plain"], strict=True)
            ]
            row["the same answers"] = list(of_share(same))
            if way != "plain":
                row["kept"] = list(of_means([run[2] for run in runs]))
            row["by seed"] = [shares({m: v for m, v in each.items() if v}) for each in judged[way]]
            found[f"temperature {temperature:g}, {way}"] = row
            print(temperature, way, {k: [round(x, 3) for x in v] for k, v in row.items() if k != "by seed"}, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="the work folder; models that are not there are trained")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    families = [Family(args.work / "families", seed, Effort()) for seed in range(args.seeds)]
    for family in families:
        family.prepare()
    about = {"command": "python examples/replication/couplings.py", "machine": machine(), "date": date.today().isoformat()}
    results = {**about, "seeds": args.seeds, "alpha": args.alpha, "rows": measured(families, args.alpha)}
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
