"""What the suite promises of itself: a test that hangs ends, `SEED` is every test's, and what one run leaves out another has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sampled

ROOT = Path(__file__).resolve().parents[2]
HANGS = """
import threading

def waits_for_ever():
    threading.Event().wait()

def test_hangs():
    threading.Thread(target=waits_for_ever, daemon=True).start()
    threading.Event().wait()

def test_comes_after():
    pass
"""
DRAWS = """
import families, torch

def test_draws():
    number = torch.rand(()).item()
    drawn = number, families.prompts("one")["input_ids"].tolist(), families.build("llama", 0).lm_head.weight[0, 0].item()
    print("drawn", *drawn, sep="|")
"""


def run(folder: Path, test: str, *options: str, **variables: str) -> str:
    """What pytest says of a file of tests, set up as this suite is."""
    for name in ("pyproject.toml", "tests/conftest.py", "tests/families.py", "tests/rooms.py"):
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / name).read_text())
    (folder / "tests" / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests/test_it.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


def test_a_test_that_hangs_ends_and_says_where_every_thread_was(tmp_path: Path) -> None:
    said = run(tmp_path, HANGS, "-o", "timeout=1")
    assert "1 failed, 1 passed" in said
    assert "Failed: Timeout" in said
    assert "in waits_for_ever" in said


def test_the_seed_is_every_test_s(tmp_path: Path) -> None:
    first, other = (
        next(line for line in run(tmp_path, DRAWS, "-s", SEED=seed).splitlines() if "drawn" in line) for seed in "12"
    )
    drawn = first.split("|")[1:]
    assert len(drawn) == 3
    assert all(one != two for one, two in zip(drawn, other.split("|")[1:], strict=True))


def test_every_test_of_which_a_share_is_run_is_there() -> None:
    for test in sampled.SHARES:
        file, name = test.split("::")
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), test


def test_the_nightly_run_has_what_the_short_one_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "SHARES", {"a/test_b.py::test_c": 3, "a/test_b.py::test_d": sampled.NIGHTLY})
    rows = [f"tests/a/test_b.py::test_c[{number}]" for number in range(10)]
    others = ["tests/a/test_b.py::test_d", "tests/a/test_b.py::test_e[0]", "tests/a/test_b.py::test_e[1]"]
    back = sampled.held_back([*rows, *others])
    assert len(back & set(rows)) == 6 and back - set(rows) == {"tests/a/test_b.py::test_d"}
    assert back == sampled.held_back([*others, *reversed(rows)])
    drawn = set()
    for seed in range(5):
        monkeypatch.setattr(sampled, "SEED", seed)
        drawn.add(frozenset(sampled.held_back([*rows, *others])))
    assert len(drawn) > 1
