"""
Batch runs over actors of Ray itself, which is not among the packages of `dev`: every night, where the extra `ray` is installed. What a run
does with what Ray gives it, `test_ray_batch.py` has without Ray.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import invoke
from letters import lines_of

from hf_eft import tiny

pytest.importorskip("ray", reason="the extra `ray` is not installed")
psutil = pytest.importorskip("psutil", reason="finds the processes of actors")

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
COUNT, PART = 160, 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of every kind, and what one process answers beside them."""
    path = tmp_path_factory.mktemp("input") / "in.jsonl"
    kinds = [{}, {"temperature": 0.9}, {"alpha": 0.5}, {"max_new_tokens": 2}, {"prompt": ""}]
    texts = [question.text for question in tiny.questions()[:COUNT]]
    path.write_text("".join(json.dumps({"prompt": text, **kinds[n % 5]}) + "\n" for n, text in enumerate(texts)))
    assert invoke(*command(path, path.with_name("alone.jsonl"))).exit_code == 3
    return path


def command(path: Path, output: Path, *more: str) -> list[str]:
    options = ["--chat", "--max-new-tokens", "8", "--batch-size", "4", "--input", str(path), "--output", str(output)]
    return ["generate", *options, *more]


def on_ray(path: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "hf_eft.cli", *command(path, output, "--ray", "--actors", "2", "--part-size", str(PART))]


def finished(path: Path, output: Path) -> None:
    done = subprocess.run(on_ray(path, output), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 3 and "32 of 160 lines could not be answered" in done.stderr, done.stderr


def same(path: Path, output: Path) -> bool:
    joined = b"".join(file.read_bytes() for file in sorted(output.glob("part-*.jsonl")))
    return joined == path.with_name("alone.jsonl").read_bytes()


def meanwhile(path: Path, output: Path, parts: int, what: Callable[[int], None]) -> int:
    """Start a run, do something to it when some parts are there, and return what it ended with."""
    child = subprocess.Popen(on_ray(path, output), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while len(list(output.glob("part-*.jsonl"))) < parts:
        assert child.poll() is None, "the run ended before anything was done to it"
        time.sleep(0.05)
    what(child.pid)
    return child.wait()


def actors(driver: int) -> list[int]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if name.startswith("ray::") and "Answering" in name:
            found.append(process.pid)
    return found


def test_two_actors_are_one_process(source: Path, tmp_path: Path) -> None:
    finished(source, tmp_path / "out")
    assert same(source, tmp_path / "out")


def test_what_a_killed_actor_had_is_taken_up(source: Path, tmp_path: Path) -> None:
    killed = []

    def kill(driver: int) -> None:
        killed.extend(actors(driver)[:1])
        psutil.Process(killed[0]).kill()

    assert meanwhile(source, tmp_path / "out", 2, kill) == 3 and killed
    assert same(source, tmp_path / "out")


def test_a_run_that_was_killed_carries_on(source: Path, tmp_path: Path) -> None:
    assert meanwhile(source, tmp_path / "out", 3, lambda driver: psutil.Process(driver).kill()) == -9
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("part-*.jsonl")}
    assert 3 <= len(before) < COUNT // PART
    finished(source, tmp_path / "out")
    assert same(source, tmp_path / "out")
    assert {file: file.stat().st_mtime_ns for file in before} == before


LOST = """
import sys
from pathlib import Path
from ray.cluster_utils import Cluster
from hf_eft.programs.ray_batch import Actors, Run, run_on_ray

def load():
    import time
    def answer(items):
        time.sleep(0.4)  # so that a machine is lost in the middle of a part
        return [{"text": item.prompt} for item in items]
    return answer, {"the models": "none"}

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
machines = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
lost = False
for done in run_on_ray(Run(sys.argv[1], sys.argv[2], 2, 4, {}, load), Actors(cluster.address, 3)):
    if done.lines >= 40 and not lost:
        lost = True
        cluster.remove_node(machines[0], allow_graceful=False)
print("done", done.lines, lost)
cluster.shutdown()
"""


def test_what_a_lost_machine_had_is_taken_up(source: Path, tmp_path: Path) -> None:
    """There is no room for a third actor any more: the parts that it had wait for one that is idle."""
    script = [sys.executable, "-c", LOST, str(source), str(tmp_path / "out")]
    done = subprocess.run(script, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert "done 160 True" in done.stdout, done.stderr[-2000:]
    lines = [line["line"] for file in sorted((tmp_path / "out").glob("part-*")) for line in lines_of(file)]
    assert lines == list(range(1, COUNT + 1))


def test_models_that_cannot_be_loaded_are_said(source: Path, tmp_path: Path) -> None:
    there = ["--model", str(tmp_path / "nowhere")]
    done = subprocess.run(
        [*on_ray(source, tmp_path / "out"), *there], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr, done.stderr
