"""
Draw compositions and hold each against the stateless oracle, block by block; a block is a seed.

    python tests/compositions.py --cases 5000 --state build/compositions.json    # carries on where it was stopped
    python tests/compositions.py --block 17                                      # one block again

A failure is shrunk and printed as the code of a small case. Blocks that failed are run again with the next start; a state without
anything left to do is begun anew. The script exits with 1 if a block failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from composition_cases import Case, code
from composition_checks import Outcome, check
from composition_draws import cases
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.internal.conjecture import providers
from transformers.utils import logging

BLOCK = 25  # cases that are drawn; hypothesis repeats itself now and then
COUNTS = ("cases", "refused", "steps", "near", "open")


class Failed(AssertionError):
    """A case of a block failed: the last one that did is the smallest."""

    def __init__(self, block: int, case: Case, error: BaseException) -> None:
        super().__init__(
            f"{type(error).__name__}: {error}\n\ncheck({code(case)})\n\nSmaller: python tests/compositions.py --block {block}"
        )
        self.case, self.error = case, error


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """
    Hypothesis draws numbers that stand in the modules that are loaded, from release 6.131 on: a block would depend on what ran before it
    in the process. Here it has those of its own list only.
    """
    if not hasattr(providers, "_get_local_constants"):
        yield
        return
    with mock.patch.object(providers, "_get_local_constants", providers.Constants):
        providers.CONSTANTS_CACHE.cache.clear()
        try:
            yield
        finally:
            providers.CONSTANTS_CACHE.cache.clear()


def run_block(
    block: int, shrink: bool = False, held: Callable[[Case], Outcome] = check, reasons: collections.Counter[str] | None = None
) -> collections.Counter[str]:
    """
    The cases of a block, always the same ones. Returns how many different ones there were, how many of them the package refused, and how
    many tokens and searches were held against the oracle, near ties and what these leave open among them.

    Raises:
        `Failed`: At the first case that fails, with `shrink` at one that was made small.
    """
    counts: collections.Counter[str] = collections.Counter()
    seen: set[str] = set()
    failed: list[tuple[Case, Exception]] = []

    @seed(block)
    @settings(
        max_examples=BLOCK,
        database=None,
        deadline=None,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(cases())
    def every(case: Case) -> None:
        if (text := code(case)) in seen:
            return
        try:
            outcome = held(case)
        except Exception as error:
            failed.append((case, error))
            raise
        seen.add(text)
        counts["cases"] += 1
        counts["refused"] += outcome.refused is not None
        if outcome.refused is not None and reasons is not None:
            reasons[outcome.refused[:100]] += 1
        for name in ("steps", "near", "open"):
            counts[name] += getattr(outcome, name)

    try:
        with same_draws():
            every()
    except Exception:
        if not failed:
            raise
        case, error = failed[-1]
        raise Failed(block, case, error) from error
    return counts


# As a script ------------------------------------------------------------------------------------------------------------


def read_state(file: Path | None) -> dict[str, Any]:
    if file is None or not file.exists():
        return {"clean": {}, "failed": {}, "reasons": {}}
    return json.loads(file.read_text())


def write_state(file: Path | None, state: dict[str, Any]) -> None:
    """As a whole or not at all."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(state, indent=1))
    beside.replace(file)


def run(wanted: int, file: Path | None, held: Callable[[Case], Outcome] = check) -> bool:
    """Run blocks until there are `wanted` different cases; whether none failed."""
    state = read_state(file)
    if not state["failed"] and total(state, "cases") >= wanted:
        state = read_state(None)
    print(f"{len(state['clean'])} blocks of {BLOCK} draws are done: {summary(state)}", flush=True)
    start, done = time.perf_counter(), 0
    again = sorted(state["failed"], key=int)
    while again or total(state, "cases") < wanted:
        block = (
            again.pop(0) if again else str(next(n for n in itertools.count() if str(n) not in state["clean"] | state["failed"]))
        )
        reasons: collections.Counter[str] = collections.Counter(state["reasons"])
        try:
            counts = run_block(int(block), shrink=True, held=held, reasons=reasons)
        except Failed as failure:
            state["failed"][block] = str(failure)
            print(f"\nblock {block} failed\n{failure}\n", flush=True)
        else:
            state["clean"][block] = [counts[name] for name in COUNTS]
            state["reasons"] = dict(reasons)
            state["failed"].pop(block, None)
            done += counts["cases"]
        write_state(file, state)
        rate = done / (time.perf_counter() - start)
        print(f"block {block}, {rate:.1f} cases a second: {summary(state)}", flush=True)
    for reason, count in collections.Counter(state["reasons"]).most_common():
        print(f"refused {count} times: {reason}")
    return not state["failed"]


def total(state: dict[str, Any], name: str) -> int:
    return sum(counts[COUNTS.index(name)] for counts in state["clean"].values())


def summary(state: dict[str, Any]) -> str:
    cases, refused, steps, near, left_open = (total(state, name) for name in COUNTS)
    return (
        f"{cases} cases, {refused} refused, {steps} tokens and searches held, {near} of them near ties, {left_open} left open by one, "
        f"{len(state['failed'])} blocks failed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="how many")
    parser.add_argument("--state", type=Path, help="a file that remembers which blocks are done")
    parser.add_argument("--block", type=int, help="run this block only, and shrink what fails")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    if asked.block is None:
        sys.exit(not run(asked.cases, asked.state))
    try:
        print(dict(run_block(asked.block, shrink=True)))
    except Failed as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
