"""The benchmark for accelerators runs where there is none, in small shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.nightly  # it compiles for a minute
def test_it_measures_what_it_says(tmp_path: Path) -> None:
    command = "--family tiny --batches 1 3 --blocks 3 --few 4 --many 14 --repeats 1 --backend eager".split()
    script, output = ROOT / "examples/benchmarks/accelerator.py", tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, script, *command, "--output", output], capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(output.read_text())["tiny"]
    assert {"batch 1", "batch 3", "adapter"} <= set(found)
    for batch in ("batch 1", "batch 3"):
        assert {"large alone", "plain", "drafts of 3"} <= set(found[batch])
        assert all(found[batch][name]["ms a step"] > 0 for name in ("large alone", "plain", "drafts of 3"))
        assert 1 < found[batch]["drafts of 3"]["tokens a round"] <= 4
    assert done.stdout.splitlines()[-1].startswith("adapter: plain / large alone (time)")
