"""
Random requests to the server, in process, served in every way; with `--what lines`, random lines of batch runs.

    python tests/random_requests.py --requests 20000 --state FILE

Every hundred have a seed of their own, so that a run that was stopped carries on from its file, and what failed can be asked again
(`--only SEED`). It prints what it does, and exits with 1 if an answer was one that may not be.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from random_bodies import requests
from random_lines import Runs, files
from random_server import Served, all_ways

MANY = {"requests": 100, "lines": 50}  # of one seed: requests, or files of lines


def _check(number: int, many: int, drawn: Any, check: Callable[[Any], Any]) -> None:
    """Check `many` random ones, those of a seed. Raises what is wrong with the smallest that is wrong."""

    @seed(number)
    @settings(
        max_examples=many, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink]
    )  # fmt: skip
    @given(drawn)
    def each(value: Any) -> None:
        check(value)

    each()


def ask_requests(served: list[Served], number: int, many: int, counted: Callable[[int], Any]) -> None:
    """Ask random requests, and count their statuses."""
    text_only = [each for each in served if each.kind == "llama"]
    ways = st.integers(0, len(served) - 1)

    def check(drawn: tuple[Any, int]) -> None:
        request, way = drawn
        asked = text_only[way % len(text_only)] if request.plain else served[way]
        counted(asked.check(request))

    _check(number, many, st.tuples(requests(), ways), check)


def answer_lines(folder: Path, number: int, many: int, counted: Callable[[int], Any]) -> None:
    """Run random files of lines in a folder, and count the lines that were answered."""
    runs = Runs()
    _check(number, many, files(), lambda lines: counted(runs.check(lines, folder)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["requests", "lines"], default="requests")
    parser.add_argument("--requests", type=int, default=20_000, help="how many requests, or files of lines")
    parser.add_argument("--state", type=Path, help="what was done, and what failed")
    parser.add_argument("--only", type=int, metavar="SEED", help="those of one seed; nothing is written down")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)  # the server's own word on each request that it refuses
    path = given.state or Path(f"random-{given.what}.json")
    state: dict[str, Any] = {"done": 0, "seconds": 0.0, "counted": {}, "failures": {}}
    if path.exists() and given.only is None:
        state = json.loads(path.read_text())
    counted = collections.Counter(state["counted"])
    many = MANY[given.what]
    with contextlib.ExitStack() as stack:
        if given.what == "requests":
            served = stack.enter_context(all_ways())
            run = functools.partial(ask_requests, served, many=many, counted=lambda status: counted.update([str(status)]))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            run = functools.partial(
                answer_lines, folder, many=many, counted=lambda lines: counted.update({"files": 1, "answers": lines})
            )
        if given.only is not None:
            run(number=given.only)
            return 0
        while state["done"] < given.requests:
            number, start = state["done"] // many, time.perf_counter()
            try:
                run(number=number)
            except Exception as error:  # whatever is wrong is written down, and the run goes on
                state["failures"][str(number)] = "".join(traceback.format_exception(error))[-6000:]
                print(f"seed {number}: {error!r:.300}", flush=True)
            state["done"] += many
            state["seconds"] += time.perf_counter() - start
            state["counted"] = dict(counted)
            path.write_text(json.dumps(state, indent=1))
            failed = len(state["failures"])
            print(
                f"{state['done']} of {given.requests}, {state['seconds']:.0f} s, {dict(counted)}, {failed} failed", flush=True
            )
    for number, failure in state["failures"].items():
        print(f"--- seed {number}\n{failure}")
    return 1 if state["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
