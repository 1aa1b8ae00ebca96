"""
A batch run over actors of Ray: is every prompt answered once, as one process answers it, when an actor and the run itself are killed? And
how many prompts a second do 1, 2 and 4 actors answer?

    python examples/many_machines/ray_data.py             # writes ray_data.json; needs hf_eft[ray], and takes 10 minutes
    python examples/many_machines/ray_data.py waiting     # the last row of runs only

The embedded family answers 2,000 prompts, greedy, sampled, at other strengths, some of which are no JSON. CPUs will do. As actors share
the cores of one machine, there is a second row of runs, whose actors wait in place of a device: what Ray and the files cost, and how that
grows.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOG = HERE / "ray_data.json"
PROMPTS, ACTORS, BATCH, PART = 2_000, 4, 20, 40
# Ray runs its workers at a niceness of 15: on a machine that does other things they hardly get to run.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "HF_HUB_OFFLINE": "1"}
WAITED, WAITING_PARTS, WAITING_PART = 0.05, 25, 20  # seconds for a prompt; parts for each actor, of so many prompts
AGAIN = 0.2  # seconds between two looks at what is written


def prompts(path: Path) -> None:
    """Lines of every kind."""
    from hf_eft import tiny

    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.9}, {"alpha": 0.5}, {"max_new_tokens": 4}, {"seed": 3, "top_p": 0.9}]
    questions = tiny.questions()
    lines = [json.dumps({"id": f"q{n}", "prompt": questions[n % len(questions)].text, **kinds[n % 5]}) for n in range(PROMPTS)]
    lines[PROMPTS // 3] = lines[PROMPTS // 3][:-1]  # no JSON any more
    lines[PROMPTS - 7] = ""
    path.write_text("\n".join(lines) + "\n")


def command(source: Path, output: Path, actors: int | None = None) -> list[str]:
    """The run, in one process or over actors."""
    many = [] if actors is None else ["--ray", "--actors", str(actors), "--part-size", str(PART)]
    options = ["--chat", "--max-new-tokens", "12", "--batch-size", str(BATCH), "--input", str(source), "--output", str(output)]
    return [sys.executable, "-m", "hf_eft.cli", "generate", *options, *many]


def parts(output: Path) -> dict[str, int]:
    """The files of results, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(output.glob("part-*.jsonl"))}


def joined(output: Path) -> bytes:
    return b"".join((output / name).read_bytes() for name in parts(output))


def wait_for(output: Path, count: int, child: subprocess.Popen[bytes]) -> None:
    while len(parts(output)) < count:
        if child.poll() is not None:
            raise SystemExit(f"The run ended by itself with {child.returncode}.")
        time.sleep(AGAIN)


def actors_of(driver: int) -> list[Any]:
    """The processes that hold the models, of a run whose process is known."""
    import psutil

    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::") and "Answering" in process.cmdline()[0]:
                found.append(process)
    return found


def killed_and_stopped(source: Path, output: Path, expected: bytes) -> dict[str, Any]:
    """One of four actors is killed when a quarter is done, the whole run at a half; then it is started again."""
    run = command(source, output, ACTORS)
    of = PROMPTS // PART
    child = subprocess.Popen(run, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_for(output, of // 4, child)
    there = actors_of(child.pid)
    there[0].kill()
    killed_at = len(parts(output))
    wait_for(output, of // 2, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    time.sleep(3)  # its actors end with it
    before = parts(output)
    begin = time.monotonic()
    done = subprocess.run(run, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    after = parts(output)
    results = joined(output)
    lines = [json.loads(line)["line"] for line in results.splitlines()]
    return {
        "parts": of, "actors seen": len(there), "parts done when an actor was killed": killed_at,
        "parts done when the run was killed": len(before), "of those written again": sum(after[name] != at for name, at in before.items()),
        "seconds of the second run": round(time.monotonic() - begin, 1), "exit code": done.returncode,
        "said": next((line.partition("/killed ")[2] for line in done.stderr.splitlines() if "carrying on" in line), done.stderr),
        "lines": len(lines), "each line once, in order": lines == list(range(1, PROMPTS + 1)),
        "equal to one process's file, byte for byte": results == expected,
    }  # fmt: skip


def measured(source: Path, folder: Path, actors: int, expected: bytes) -> dict[str, Any]:
    """Prompts a second of one run: from the first file of results to the last, and over all of it."""
    output = folder / f"actors-{actors}"
    begin = time.time()
    subprocess.run(command(source, output, actors), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    seconds = time.time() - begin
    ends = sorted(at / 1e9 for at in parts(output).values())
    # The first `actors` parts have the loading in them.
    steady = (len(ends) - actors) * PART / (ends[-1] - ends[actors - 1])
    return {
        "actors": actors, "seconds": round(seconds, 1), "seconds to the first part": round(ends[0] - begin, 1),
        "prompts a second": round(steady, 1), "equal to one process": joined(output) == expected,
    }  # fmt: skip


def waiting() -> tuple[Any, dict[str, str]]:
    """What answers by waiting, as a process does whose device works."""

    def answer(items: Sequence[Any]) -> list[dict[str, str]]:
        time.sleep(WAITED * len(items))
        return [{"text": item.prompt} for item in items]

    return answer, {"the models": "none"}


def wait(actors: int, folder: Path) -> None:
    """A run of actors that wait."""
    from hf_eft.programs.ray_batch import Actors, Run, run_on_ray

    folder.mkdir()
    (folder / "in.txt").write_text("a prompt\n" * (WAITING_PARTS * WAITING_PART * actors))
    run = Run(str(folder / "in.txt"), str(folder / "out"), WAITING_PART, WAITING_PART, {}, waiting)
    for _ in run_on_ray(run, Actors(count=actors)):
        pass


def waited(folder: Path, actors: int) -> dict[str, Any]:
    """Prompts a second of actors that wait, and what a part costs besides."""
    subprocess.run(
        [sys.executable, __file__, "wait", str(actors), str(folder / f"waited-{actors}")],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    ends = sorted(at / 1e9 for at in parts(folder / f"waited-{actors}" / "out").values())
    seconds = (ends[-1] - ends[actors - 1]) / (len(ends) - actors)  # of one part, over all actors
    return {
        "actors": actors, "prompts": len(ends) * WAITING_PART, "prompts a second": round(WAITING_PART / seconds, 1),
        "seconds of a part besides waiting": round(seconds * actors - WAITED * WAITING_PART, 3),
    }  # fmt: skip


def all_waited() -> dict[str, Any]:
    """The row of runs whose actors wait."""
    with tempfile.TemporaryDirectory() as place:
        runs = [waited(Path(place), actors) for actors in (1, 2, 4)]
    return {
        "command": "python examples/many_machines/ray_data.py waiting", "date": datetime.now(UTC).date().isoformat(),
        "load": round(os.getloadavg()[1], 1), "seconds a prompt": WAITED, "part size": WAITING_PART, "runs": runs,
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["wait"]:
        wait(int(sys.argv[2]), Path(sys.argv[3]))
        return
    again = sys.argv[1:] == ["waiting"]
    log = {**json.loads(LOG.read_text()), "waiting": all_waited()} if again else all_of_it()
    LOG.write_text(json.dumps(log, indent=1) + "\n")
    print(json.dumps({name: log[name] for name in ("runs", "waiting")}, indent=1))


def all_of_it() -> dict[str, Any]:
    """Everything that is written."""
    import ray
    import torch

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source, whole = folder / "prompts.jsonl", folder / "whole.jsonl"
        prompts(source)
        begin = time.time()
        subprocess.run(command(source, whole), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        alone = time.time() - begin
        expected = whole.read_bytes()
        log: dict[str, Any] = {
            "command": "python examples/many_machines/ray_data.py",
            "machine": f"{os.cpu_count()} cores, {_processor()}, shared with other work (load {os.getloadavg()[1]:.1f} at the beginning)",
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {"ray": ray.__version__, "torch": torch.__version__, "python": platform.python_version()},
            "prompts": PROMPTS, "batch size": BATCH, "part size": PART,
            "one process": {"seconds": round(alone, 1)},
        }  # fmt: skip
        log["killed"] = killed_and_stopped(source, folder / "killed", expected)
        print(json.dumps(log, indent=1), flush=True)
        log["runs"] = [measured(source, folder, actors, expected) for actors in (1, 2, 4)]
    return {**log, "waiting": all_waited()}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
