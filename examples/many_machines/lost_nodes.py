"""
What lost machines cost a run over actors: its time, and the work that is done twice, against the size of a part and the rate of losses.

    python examples/many_machines/lost_nodes.py     # prints a table and writes lost_nodes.json; a minute on one core, no models

A simulation, and a formula beside it. An actor takes a part, reads and writes it in HANDED seconds, and answers it in as long as its
lines take. Machines are lost at random, each as often as any other; what a lost actor had begun is begun anew when it is back, after BACK
seconds.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LOG = Path(__file__).parent / "lost_nodes.json"
LINES, ACTORS, RATE = 100_000_000, 256, 20.0  # lines, actors, lines a second of one actor
HANDED, BACK = 0.2, 300.0  # seconds: to hand out, read and write a part; until a lost actor has its models again
PART_SECONDS = (10.0, 60.0, 300.0, 1800.0, 7200.0)  # of answering one part
RUNS = 10  # of the simulation
DAYS = (0.1, 1.0, 10.0)  # between two losses of one machine, on average; one actor on each


def formula(seconds: float, days: float) -> tuple[float, float]:
    """Hours of a run, and the share of its work that is done twice."""
    # A loss finds an actor anywhere in its part, on average in the middle: that half is lost, and nothing else.
    every, whole = days * 86400, seconds + HANDED
    twice = whole / 2 / every
    rounds = math.ceil(LINES / (RATE * seconds) / ACTORS)
    # What is lost in the last round has nobody beside it to make up for it.
    last = 1 - math.exp(-ACTORS * (whole + BACK) / every)
    return (BACK + rounds * whole * (1 + twice + BACK / every) + last * (BACK + whole / 2)) / 3600, twice


def simulated(seconds: float, days: float) -> tuple[float, float]:
    """The same, part by part and loss by loss: the mean of some runs."""
    runs = [_run(seconds, days, seed) for seed in range(RUNS)]
    return sum(hours for hours, _ in runs) / RUNS, sum(twice for _, twice in runs) / RUNS


def _run(seconds: float, days: float, seed: int) -> tuple[float, float]:
    draw = random.Random(seed)
    every, whole = days * 86400, seconds + HANDED
    parts = round(LINES / (RATE * seconds))
    # When each actor is free, and when it is lost next.
    actors = [(BACK, draw.expovariate(1 / every)) for _ in range(ACTORS)]
    heapq.heapify(actors)
    end = lost = 0.0
    for _ in range(parts):
        now, loss = heapq.heappop(actors)
        while now + whole > loss:  # lost on the way, or while it was loading
            lost += max(0.0, loss - now)
            now = max(now, loss) + BACK
            loss = now - BACK + draw.expovariate(1 / every)
        heapq.heappush(actors, (now + whole, loss))
        end = max(end, now + whole)
    return end / 3600, lost / (parts * whole)


def main() -> None:
    rows: list[dict[str, Any]] = []
    alone = LINES / RATE / ACTORS / 3600
    print(f"{LINES:,} lines, {ACTORS} actors of {RATE:g} lines a second: {alone:.2f} hours without anything else")
    print("a part takes | lines | files | a loss each | hours: simulated, formula | done twice: simulated, formula")
    for days in DAYS:
        for seconds in PART_SECONDS:
            hours, twice = simulated(seconds, days)
            by_formula, twice_by_formula = formula(seconds, days)
            lines = round(RATE * seconds)
            rows.append(
                {
                    "part seconds": seconds, "part lines": lines, "files": LINES // lines, "days between losses of a machine": days,
                    "hours": round(hours, 3), "hours by formula": round(by_formula, 3),
                    "done twice": round(twice, 6), "done twice by formula": round(twice_by_formula, 6),
                }
            )  # fmt: skip
            print(
                f"{seconds:>6g} s | {lines:,} | {LINES // lines:,} | {days:g} d | {hours:.2f}, {by_formula:.2f} | "
                f"{twice:.2%}, {twice_by_formula:.2%}"
            )
    head = {
        "command": "python examples/many_machines/lost_nodes.py", "date": datetime.now(UTC).date().isoformat(),
        "lines": LINES, "actors": ACTORS, "lines a second of one actor": RATE, "seconds to hand out a part": HANDED,
        "seconds until a lost actor is back": BACK,
    }  # fmt: skip
    LOG.write_text(json.dumps({**head, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
