"""
Learning through the combination, on the replication's world: what of the form a small delta brings to a large model.

    python examples/replication/through/run.py            # five seeds, every stage over all of them before the next
    python examples/replication/through/run.py --quick    # seconds: sees that everything runs, and says nothing else

Strengths of use are chosen on the validation people, and the choice is asked of the test people once. What was trained and asked before is
not done again: there is a file for every seed and setting in the work folder. `report.py` makes tables and pictures of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scales"), str(HERE.parents[1] / "benchmarks")]

import torch  # noqa: E402
from by_token import answers, by_token  # noqa: E402
from learning import Bench  # noqa: E402
from machine import machine  # noqa: E402
from measure import Asked, shares  # noqa: E402
from movement import MOVEMENT  # noqa: E402
from sampling import SAMPLING, TEMPERATURE  # noqa: E402
from second import judged  # noqa: E402
from settings import STAGES, Setting  # noqa: E402
from sizes import Effort, Family  # noqa: E402
from steering import STEERING  # noqa: E402

from hf_eft import Combination, EFTForCausalLM  # noqa: E402

QUICK = Effort(pretraining_steps=2, tuning_steps=2, people=8)
WATCHED = (
    0,
    1 / 14,
    2 / 7,
)  # parts of the training at which the tokens are looked at, besides its end: 0, 50 and 200 of 700 steps
JOBS: dict[str, Sequence[Any]] = {**STAGES, "sampling": SAMPLING, "movement": MOVEMENT, "steering": STEERING}


def wanted(scores: dict[str, float], behaviour: str) -> float:
    """What the strength is chosen by: facts and form, and what is refused by a model that has to."""
    return scores["factuality"] + scores["helpfulness"] + (scores["harmlessness"] if behaviour == "harmless" else 0.0)


def measure(bench: Bench, setting: Setting) -> dict[str, Any]:
    """Train what the setting says, choose a strength on the validation people, and ask the test people."""
    family, world = bench.family, bench.worlds[setting.world]
    base, reference = family.model(setting.use, "base"), family.model(setting.size, "base")
    looked_at, glance = (answers(world, family.tokenizer, people) for people in (world.test, world.test[:20]))
    steps = setting.times * family.effort.tuning_steps
    watched: dict[str, Any] = {}
    trained_on = reference if setting.alpha is None else base  # what the loss was of: the tuned model alone, or a combination

    def tokens(learner: Any, alpha: float, on: Any = base, what: Any = looked_at) -> dict[str, Any]:
        return by_token({"base": on, "tuned": learner, "reference": reference}, alpha, *what)

    def watch(done: int, learner: Any) -> None:
        if setting.alpha is not None and done in {round(part * steps) for part in WATCHED}:
            watched[str(done)] = tokens(learner, setting.alpha, what=glance)

    if setting.alpha is None:
        watched["0"] = tokens(reference, 1.0, trained_on, glance)
    started = time.perf_counter()
    learner = bench.learner(setting, watch)
    seconds = time.perf_counter() - started
    model = EFTForCausalLM.from_models(base, tuned=learner, reference=reference)

    def scores(asked: Asked, strength: float, temperature: float = 0.0) -> dict[str, float]:
        model.combination = Combination.emulate(alpha=strength)
        return shares(judged(world, asked.questions, asked.answers(model, temperature)))

    validation, test = Asked(family, world.validation), Asked(family, world.test)
    chosen, tried = setting.strengths[0], {}
    if len(setting.strengths) > 1:
        tried = {strength: scores(validation, strength) for strength in setting.strengths}
        chosen = max(tried, key=lambda strength: wanted(tried[strength], setting.behaviour))
    return {
        "setting": {**vars(setting), "steps": steps},
        "seed": family.seed,
        "chosen": chosen,
        "validation": {f"{strength:g}": found for strength, found in tried.items()},
        "test": {f"{strength:g}": scores(test, strength) for strength in sorted({chosen, *setting.tested})},
        "test, temperature 1": scores(test, chosen, TEMPERATURE),
        "tokens": tokens(learner, chosen),
        "tokens of what was trained": tokens(learner, setting.alpha or 1.0, trained_on),
        "tokens while training": watched,
        "seconds": round(seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, next to no training")
    parser.add_argument("--seeds", type=int, help="how many; 5, or 1 with --quick")
    parser.add_argument("--stages", nargs="*", choices=list(JOBS), help="all if left out")
    parser.add_argument("--work", type=Path, help="where models and results are kept; a folder `trained` beside this file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # one thread beats two for models this small
    effort = QUICK if args.quick else Effort()
    work = args.work or HERE / "trained" / ("quick" if args.quick else "results")
    seeds = range(args.seeds or (1 if args.quick else 5))
    benches = [Bench(Family(work / "families", seed, effort), work / "learners" / f"seed-{seed}") for seed in seeds]
    for stage in args.stages or JOBS:
        for seed, bench in zip(seeds, benches, strict=True):
            bench.family.prepare()
            for job in JOBS[stage]:
                known = work / "measured" / f"seed-{seed}" / f"{job.name}.json"
                if known.exists():
                    continue
                found = measure(bench, job) if isinstance(job, Setting) else job.measure(bench)
                about = {"machine": machine(), "date": date.today().isoformat()}
                known.parent.mkdir(parents=True, exist_ok=True)
                known.write_text(json.dumps({"stage": stage, **found, **about}, indent=1) + "\n")
                print(f"{stage}, seed {seed}, {job.name}: {found.get('test', '')}", flush=True)
            bench.forget()


if __name__ == "__main__":
    main()
