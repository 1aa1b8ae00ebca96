"""
Run the mutants that were drawn, each against the tests of its room (`make mutants`).

    python -m mutants                       # all; what has run is not run again
    python -m mutants --room recipe --jobs 1
    python -m mutants --list                # nothing runs: the table, and each survivor that nobody has judged
    python -m mutants --survivors           # only those, again, with more of the room's tests that run their lines
    python -m mutants --profile             # first see anew which tests run which lines, after the package has changed

The state is in `.mutants/`, which may be deleted. A survivor asks for a test, for less code, or for a line in `judged.json` that
says why it cannot matter (`--list` prints it but for the reason); while one is left, the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
from pathlib import Path

from . import fork
from .draw import Draw, Mutant, kept
from .reach import Reach, lines_of
from .record import CAUGHT, SURVIVED, TABLE, TIMED_OUT, Outcome, State, entry, judged, row, table, total
from .targets import ROOMS, ROOT, name_of, tests

FOLDER = ROOT / ".mutants"
SEED = 16
# Seconds of tests, as they took alone, of a first look at a mutant and of a second one at those who survived it.
_FIRST, _SECOND = 8.0, 80.0
_SLACK, _TIMES, _WAIT = 30.0, 4.0, 8.0  # to import the package; what a mutant may be slower; what a busy machine may be


def planned(mutant: Mutant, reach: Reach, budget: float) -> list[tuple[str, float]]:
    """The tests that a mutant is tried with, in order, with their seconds."""
    lines = lines_of(mutant.source.read_text(), mutant.first)
    chosen, spent = [], 0.0
    for test, seconds in reach.tests(mutant.source, lines, tests(mutant.place.room)):
        if spent and spent + seconds > budget:
            continue
        chosen.append((test, seconds))
        spent += seconds
    return chosen


def begin(mutant: Mutant, plan: list[tuple[str, float]]) -> fork.Run:
    text = mutant.text()
    if text is None:
        raise RuntimeError(f"{mutant.key} is no mutant any more: delete {FOLDER}.")
    names = [test for test, _ in plan]

    def call(folder: Path) -> dict[str, object]:
        sys.meta_path.insert(0, fork.Planted(mutant.source, text))
        chosen = fork.Chosen(names)
        status = fork.pytest_in(folder, (name.partition("::")[0] for name in names), chosen, options=["-x"])
        return {"status": status, "failed": chosen.failed, "ran": chosen.ran}

    cpu = _SLACK + _TIMES * sum(seconds for _, seconds in plan)
    return fork.Run(call, cpu, _WAIT * cpu)


def ended(mutant: Mutant, run: fork.Run, answer: dict[str, object]) -> Outcome | None:
    """What came out; nothing if somebody else ended it."""
    seconds = round(time.monotonic() - run.began, 1)
    if answer.get("died") in ("SIGTERM", "SIGKILL", "SIGINT"):
        return None
    if "died" in answer:
        outcome = TIMED_OUT if answer["died"] == "timed out" else CAUGHT
        return Outcome(mutant.key, outcome, str(answer["died"]), 0, seconds)
    passed = answer["status"] == 0
    by = "" if passed else str(answer["failed"] or "it cannot be imported")
    return Outcome(mutant.key, SURVIVED if passed else CAUGHT, by, int(str(answer["ran"])), seconds)


def run_all(todo: list[Mutant], reach: Reach, state: State, jobs: int, budget: float) -> None:
    """Run these, so many at a time, and say how it goes."""
    began, done = time.monotonic(), 0
    waiting = list(reversed(todo))
    running: list[tuple[Mutant, fork.Run]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                plan = planned(mutant, reach, budget)
                if plan:
                    running.append((mutant, begin(mutant, plan)))
                else:
                    state.add(Outcome(mutant.key, SURVIVED, "", 0, 0.0))
            for mutant, run in list(running):
                answer = run.poll()
                if answer is None:
                    continue
                running.remove((mutant, run))
                outcome = ended(mutant, run, answer)
                run.forget()
                done += 1
                if outcome is None:
                    print(f"[{done}/{len(todo)}] was ended by somebody else, and is run next time: {mutant.key}", flush=True)
                    continue
                state.add(outcome)
                left = (time.monotonic() - began) / done * (len(waiting) + len(running)) / 60
                at = f"{name_of(mutant.source)}:{mutant.first} {mutant.operator}"
                said = f"by {outcome.by}" if outcome.by else f"{outcome.ran} tests"
                print(
                    f"[{done}/{len(todo)}] {outcome.outcome:9} {at} {said}, {outcome.seconds} s; {left:.0f} min left",
                    flush=True,
                )
            time.sleep(0.05)
    finally:
        for _, run in running:
            run.end()
            run.forget()


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--room", choices=sorted(ROOMS), action="append", help="this room only; may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time")
    parser.add_argument("--seed", type=int, default=SEED, help="of the draw")
    parser.add_argument("--count", type=int, help="how many of each room, instead of the table's")
    parser.add_argument(
        "--survivors", action="store_true", help="run those that survived and are not judged again, with more tests"
    )
    parser.add_argument("--list", action="store_true", help="run nothing; print the table and the survivors")
    parser.add_argument("--profile", action="store_true", help="see anew which tests run which lines")
    given = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # as an interrupt does: what runs is ended
    rooms = given.room or list(ROOMS)
    why, state, reach = judged(), State(FOLDER / "state.jsonl"), Reach(FOLDER / "reach")

    def draws() -> dict[str, Draw]:
        return {room: kept(room, given.count or ROOMS[room].drawn, given.seed, FOLDER / "drawn") for room in rooms}

    drawn = draws()
    rows = {room: row(draw, state, why) for room, draw in drawn.items()}
    if given.survivors:
        todo = [mutant for each in rows.values() for mutant in each.open]
    else:
        todo = [mutant for draw in drawn.values() for mutant in draw.mutants if mutant.key not in state.outcomes]
    if todo and not given.list:
        files = list(dict.fromkeys(name for room in rooms for name in tests(room)))
        fork.warm(reach.modules(files))
        for n, name in enumerate(name for name in files if given.profile or reach.missing(name)):
            failed = reach.measure(name)
            print(
                f"profile {n + 1}: {name}" + "".join(f"\n  did not pass, and sees nothing: {test}" for test in failed),
                flush=True,
            )
        run_all(todo, reach, state, given.jobs, _SECOND if given.survivors else _FIRST)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{(used.ru_utime + used.ru_stime) / 60:.1f} minutes of processor time")
        rows = {room: row(draw, state, why) for room, draw in drawn.items()}
    print(table(rows))
    for mutant in total(rows.values()).open:
        print(f"\n{mutant.diff()}\n{json.dumps(entry(mutant, ''))}")
    ran = {room: each.matter + each.judged for room, each in rows.items()}
    if rooms == list(ROOMS) and given.seed == SEED and not given.count and all(ran[room] == rows[room].drawn for room in rooms):
        TABLE.write_text(table(rows) + "\n")
    return int(bool(total(rows.values()).open))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
