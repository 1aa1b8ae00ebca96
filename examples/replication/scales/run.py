"""
The paper's claims on a synthetic world: what scaling pre-training buys, and what scaling fine-tuning buys.

    python examples/replication/scales/run.py            # five seeds; the time is in results.json
    python examples/replication/scales/run.py --quick    # one seed, less training

Trains three sizes with two behaviours for every seed, asks every pair of scales about people whom fine-tuning never showed, and writes
`results.json`, `quick.json` or what `--output` says, and the pictures and tables beside it. What was trained and asked before is not done
again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "benchmarks")]

import torch  # noqa: E402
from machine import machine  # noqa: E402
from measure import everything  # noqa: E402
from sizes import QUICK, SIZES, Effort, Family  # noqa: E402


def train(work: Path, seed: int, effort: Effort, size: str) -> float:
    """Train what is missing of a size; seconds."""
    torch.set_num_threads(1)  # one thread beats two for models this small, and jobs run side by side
    started = time.perf_counter()
    Family(work, seed, effort).train(size)
    return time.perf_counter() - started


def measure(work: Path, seed: int, effort: Effort) -> dict[str, Any]:
    """The results of a seed, from its folder if they are there."""
    torch.set_num_threads(1)
    family = Family(work, seed, effort)
    known = family.folder / "results.json"
    if not known.exists():
        known.write_text(json.dumps(everything(family), indent=1) + "\n")
    return json.loads(known.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, a quarter of the training, fewer people")
    parser.add_argument("--seeds", type=int, help="how many; 5, or 1 with --quick")
    parser.add_argument("--jobs", type=int, default=2, help="how many run side by side, a core each")
    parser.add_argument("--work", type=Path, help="where models are kept; a folder `trained` beside this file")
    parser.add_argument("--output", type=Path, help="where results go; results.json or quick.json beside this file")
    args = parser.parse_args()
    effort, name = (QUICK, "quick") if args.quick else (Effort(), "results")
    seeds = args.seeds or (1 if args.quick else 5)
    work = args.work or HERE / "trained" / name
    output = args.output or HERE / f"{name}.json"

    resumed = any(work.glob("seed-*/*/model.safetensors"))  # then its time says nothing
    for seed in range(seeds):
        Family(work, seed, effort).prepare()
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        # The longest jobs first, so that none is left over at the end.
        training = {pool.submit(train, work, s, effort, size): (s, size) for size in reversed(SIZES) for s in range(seeds)}
        for done in as_completed(training):
            seed, size = training[done]
            print(f"seed {seed}, {size}: trained in {done.result():.0f} s", flush=True)
        measured = []
        for results in pool.map(measure, *zip(*((work, seed, effort) for seed in range(seeds)), strict=True)):
            measured.append(results)
            print(f"seed {results['seed']}: measured", flush=True)
    minutes = None if resumed else round((time.perf_counter() - started) / 60, 1)
    command = "python examples/replication/scales/run.py" + (" --quick" if args.quick else "")
    about = {"machine": machine(), "date": date.today().isoformat(), "command": command, "effort": vars(effort)}
    output.write_text(json.dumps({**about, "minutes": minutes, "jobs": args.jobs, "seeds": measured}, indent=1) + "\n")
    print(output)


if __name__ == "__main__":
    main()
