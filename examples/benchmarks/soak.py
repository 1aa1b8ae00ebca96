"""
Soak: thousands of short calls through one wrapper, one add-on and one server, calls that fail and clients that leave among them.

    python examples/benchmarks/soak.py                      # 10,000 calls each: about a quarter of an hour on one core
    python examples/benchmarks/soak.py --calls 200 --output /tmp/soak.json

Every answer must equal the first one of its kind, and memory must be flat: after every hundred calls what is alive is counted and memory
is read, and both are drawn.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import threading
import time
import warnings
from contextlib import AbstractContextManager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine
from matplotlib.figure import Figure
from soak_calls import Calls, add_on, server, wrapper
from transformers.utils import logging as transformers_logging

from hf_eft.evaluation import plots
from hf_eft.files import as_json

EVERY = 100  # calls between two looks at memory
SYSTEMS: dict[str, Any] = {
    "wrapper": wrapper,
    "add-on": add_on,
    "server": server,
    "server, batched": partial(server, batched=True),
}
COLOURS = {"wrapper": "#009E73", "add-on": "#0072B2", "server": "#E69F00", "server, batched": "#CC79A7"}
# Of memory, from the second tenth of the calls to the last: what the allocator's own wandering stays under.
GROWTH = 0.02


def held() -> float:
    """
    The process's own memory in MiB, what the kernel swapped out of it included. (Pages of files, which the weights are, come and go in the
    resident set as other processes need memory.)
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 2**10


def look() -> dict[str, float]:
    """What is alive. Objects that were there when `gc.freeze` was called are not counted."""
    gc.collect()
    found = gc.get_objects()
    tensors = sum(isinstance(each, torch.Tensor) for each in found)
    return {"memory_mib": round(held(), 2), "objects": len(found), "tensors": tensors, "threads": threading.active_count()}


def soak(name: str, made: AbstractContextManager[Calls], calls: int) -> dict[str, Any]:
    """Make the calls of a system in turn; what each answered first, whether it always did, and memory on the way."""
    with made as cycle:
        kinds = list(cycle)
        first = {kind: cycle[kind]() for kind in kinds}  # what is made once is made here
        gc.collect()
        gc.freeze()
        seen, differing, start, spent = [{"calls": 0, **look()}], [], time.perf_counter(), time.process_time()
        for n in range(1, calls + 1):
            kind = kinds[(n - 1) % len(kinds)]
            if cycle[kind]() != first[kind]:
                differing.append([n, kind])
            if n % EVERY == 0:
                seen.append({"calls": n, **look()})
                rate = (time.perf_counter() - start) / n
                print(
                    f"\r{name}: {n} of {calls}, {seen[-1]['memory_mib']:.0f} MiB, {1000 * rate:.0f} ms a call, "
                    f"{rate * (calls - n):.0f} s left   ",
                    end="", file=sys.stderr, flush=True,
                )  # fmt: skip
        print(file=sys.stderr)
        seconds = {"wall": round(time.perf_counter() - start), "cpu": round(time.process_time() - spent)}
    gc.unfreeze()
    return {
        "calls": calls, "kinds": kinds, "seconds": seconds, "differing": differing, **grown(seen), "threads_left": left(),
        "seen": {key: [each[key] for each in seen] for key in seen[0]},
    }  # fmt: skip


def left() -> list[str]:
    """Threads that should have ended with the system."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("eft") or "generation" in thread.name]


def grown(seen: list[dict[str, float]]) -> dict[str, float]:
    """Memory, and what is alive, from the second tenth of the calls to the last one, in medians."""
    tenth = max(1, len(seen) // 10)
    early, late = seen[tenth : 2 * tenth] or seen[-1:], seen[-tenth:]

    def median(part: list[dict[str, float]], key: str) -> float:
        return float(statistics.median(each[key] for each in part))

    return {
        "early_mib": median(early, "memory_mib"),
        "late_mib": median(late, "memory_mib"),
        "memory_growth": round(median(late, "memory_mib") / median(early, "memory_mib") - 1, 4),
        **{f"{key}_growth": median(late, key) - median(early, key) for key in ("objects", "tensors", "threads")},
    }


def wrong(name: str, result: dict[str, Any]) -> list[str]:
    """What a system did that it may not do."""
    found = [f"{name}: call {n} ({kind}) answered otherwise than the first" for n, kind in result["differing"][:5]]
    if result["memory_growth"] > GROWTH:
        found.append(f"{name}: memory grew by {result['memory_growth']:.1%}")
    # A thread that waits or not holds an object more or fewer; a leak of one object in a hundred calls is far more.
    found += [
        f"{name}: {result[f'{key}_growth']:+.0f} {key}"
        for key, allowed in (("objects", 50), ("tensors", 0), ("threads", 0))
        if result[f"{key}_growth"] > allowed
    ]
    return found + [f"{name}: the thread {thread} is left" for thread in result["threads_left"]]


def draw(results: dict[str, Any], path: Path) -> None:
    """Memory, and the tensors that are alive, against calls."""
    with plots.style():
        figure = Figure(figsize=(8, 3.2))
        memory, alive = figure.subplots(1, 2)
        for name, found in results["systems"].items():
            seen = found["seen"]
            memory.plot(seen["calls"], seen["memory_mib"], color=COLOURS[name], label=name)
            alive.plot(seen["calls"], [n - seen["objects"][0] for n in seen["objects"]], color=COLOURS[name], label=name)
        memory.set_ylabel("memory, MiB")
        memory.set_ylim(bottom=0)
        alive.set_ylabel("objects more than at the start")
        for panel in (memory, alive):
            panel.set_xlabel("calls")
        memory.legend()
        figure.suptitle(f"Memory against calls. {results['machine']}, {results['date']}")
        plots.save(figure, path, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    logging.getLogger("hf_eft.serving").setLevel(logging.CRITICAL)  # calls that fail are part of it
    results: dict[str, Any] = {"machine": machine(), "date": date.today().isoformat()}
    results |= {"command": "python examples/benchmarks/soak.py", "systems": {}}
    for name in args.systems:
        results["systems"][name] = soak(name, SYSTEMS[name](), args.calls)
        args.output.write_text(as_json(results))
    draw(results, args.output.with_suffix(".png"))
    found = [each for name, result in results["systems"].items() for each in wrong(name, result)]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
