"""
Rules for the strength at every token, on the replication's worlds: which of them is worth it.

    python examples/replication/rules/run.py            # five seeds: trains what is missing, chooses, asks
    python examples/replication/rules/run.py --processes 2    # the same numbers, jobs side by side
    python examples/replication/rules/run.py --quick    # minutes: sees that everything runs, and says nothing else

Options of rules, constants and truncations are chosen on the validation people of the first seed, and so is the rule that is recommended;
all are then frozen, and the test people of all seeds are asked once. Nothing is done twice: there is a file for every seed and row in the
work folder. `report.py` makes tables and pictures of what is there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OTHERS = (HERE.parent / "through", HERE.parent / "scales", HERE.parent, HERE.parents[1] / "benchmarks")
sys.path[:0] = [str(HERE), *map(str, OTHERS)]

import torch  # noqa: E402
from benches import Seed  # noqa: E402
from choosing import CONSTANTS, family, is_rule, is_shared, is_truncation, options, recommended  # noqa: E402
from frontier import FRONTIERS, Frontier  # noqa: E402
from machine import machine  # noqa: E402
from measuring import RECOMMENDED, RECOMMENDED_CONSTANT, ask, frozen, trained_gates, validate  # noqa: E402
from rows import ROWS, Row  # noqa: E402
from sizes import Effort  # noqa: E402

QUICK = Effort(pretraining_steps=2, tuning_steps=2, people=8)
STAGES = ("train", "choose", "test", "frontiers")
KINDS = {"rule": is_rule, "truncation": is_truncation}
FIRST = 0  # the seed whose validation people choose


def kept(path: Path, make: Any) -> Any:
    """What is in the file, made and written first if it is not there."""
    if not path.exists():
        started = time.process_time()  # whatever else the machine has to do
        found = make()
        about = {"seconds": round(time.process_time() - started, 1), "machine": machine(), "date": date.today().isoformat()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**found, **about}, indent=1, ensure_ascii=False) + "\n")
        print(f"{path.parent.name}/{path.stem}: {about['seconds']} s", flush=True)
    return json.loads(path.read_text())


def named(rows: Sequence[str]) -> list[Row]:
    return [row for row in ROWS if row.name in rows]


def train(work: Path, effort: Effort, rows: Sequence[str], seed: int) -> None:
    """Train what the rows need of a seed and is not there."""
    models = Seed(work, seed, effort)
    for row in named(rows):
        models.train(row)


def validated(work: Path, effort: Effort, row: str) -> dict[str, Any]:
    """Every option of every family on the validation people of the first seed."""
    [which], first = named([row]), Seed(work, FIRST, effort)
    gates = trained_gates(work / "gates", which, first)
    return dict(kept(work / "validation" / f"{row}.json", partial(validate, which, first, gates)))


def measured(work: Path, effort: Effort, stage: str, names: Sequence[str], seed: int) -> None:
    """Ask the test people of a seed what was chosen, or follow frontiers there."""
    chosen, models = json.loads((work / "chosen.json").read_text()), Seed(work, seed, effort)
    is_test = stage == "test"
    for job in named(names) if is_test else [each for each in FRONTIERS if each.name in names]:
        asked = frozen(work / "gates", job, chosen) if is_test else chosen[RECOMMENDED]
        make = partial(ask if is_test else Frontier.measure, job, models, asked)
        kept(work / stage / f"seed-{seed}" / f"{job.name}.json", make)


def side_by_side(processes: int, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Do jobs, so many at a time, each on one thread: what one finds does not depend on the others."""
    if processes == 1:
        return [job() for job in jobs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return [each.result() for each in [pool.submit(job) for job in jobs]]


def choices(rows: Sequence[Row], found: dict[str, Any]) -> dict[str, Any]:
    """What the validation people of the first seed chose: by row the option of every family and the best rule, and what is recommended."""
    ordinary = {row.name: found[row.name]["validation"] for row in rows if row.is_ordinary}
    which = {
        name: dict(zip(("family", "option"), recommended(ordinary, kind), strict=True))
        for name, kind in ((RECOMMENDED, is_shared), (RECOMMENDED_CONSTANT, CONSTANTS.__contains__))
    }
    by_row = {}
    for row in rows:
        validated = found[row.name]["validation"]
        best = {kind: family(validated, of_kind, row.refuses) for kind, of_kind in KINDS.items()}
        by_row[row.name] = {"options": options(validated, row.refuses), **best}
    return {**which, "rows": by_row}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, next to no training")
    parser.add_argument("--processes", type=int, default=1, help="how many jobs at a time, on one thread each")
    parser.add_argument("--seeds", type=int, help="how many; 5, or 1 with --quick")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=STAGES, help="all if left out")
    parser.add_argument("--rows", nargs="*", help="names of rows, or of frontiers; all if left out")
    parser.add_argument("--work", type=Path, help="where models and results are kept; a folder `trained` beside this file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # one thread beats two for models this small
    effort = QUICK if args.quick else Effort()
    work = args.work or HERE / "trained" / ("quick" if args.quick else "results")
    seeds = range(args.seeds or (1 if args.quick else 5))
    rows = [row for row in ROWS if args.rows is None or row.name in args.rows]
    names = [row.name for row in rows]
    if "train" in args.stages:
        worlds = [[row.name for row in rows if row.sums is sums] for sums in (False, True)]  # each has models of its own
        side_by_side(args.processes, [partial(train, work, effort, those, seed) for those in worlds for seed in seeds])
    if "choose" in args.stages:
        alike = [row for row in ROWS if row.name in {each.like for each in rows}]
        found = side_by_side(args.processes, [partial(validated, work, effort, row.name) for row in alike])
        chosen = choices(alike, dict(zip((row.name for row in alike), found, strict=True)))
        (work / "chosen.json").write_text(json.dumps(chosen, indent=1, ensure_ascii=False) + "\n")
    frontiers = [each.name for each in FRONTIERS if args.rows is None or each.name in args.rows]
    for stage, those in (("test", names), ("frontiers", frontiers)):
        if stage in args.stages:
            jobs = [partial(measured, work, effort, stage, [name], seed) for seed in seeds for name in those]
            side_by_side(args.processes, jobs)


if __name__ == "__main__":
    main()
