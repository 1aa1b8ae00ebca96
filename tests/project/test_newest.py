"""The table of `make newest`, and how an environment gets its torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import environment
import newest
import pytest

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one" />
<testcase classname="tests.test_a" name="test_two"><failure message="no" /></testcase>
<testcase classname="tests.test_b.TestX" name="test_three"><skipped message="no GPU" /></testcase>
<testcase classname="" name="tests.test_c"><error message="cannot be imported" /></testcase>
</testsuite></testsuites>"""


def test_the_table_counts_by_file(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    results = newest.by_file(tmp_path / "report.xml")
    assert newest.table(results).splitlines() == [
        "| file | passed | failed | skipped |",
        "| --- | --- | --- | --- |",
        "| test_a | 1 | 1 | 0 |",
        "| test_c | 0 | 1 | 0 |",
        "| all | 1 | 2 | 1 |",
    ]


def test_versions_are_those_of_the_environment() -> None:
    import transformers

    assert f"transformers {transformers.__version__}," in newest.versions(sys.executable)


@pytest.mark.parametrize(
    "gpu, version, asked",
    [
        (False, None, "torch==2.13.0+cpu"),
        (False, "2.10", "torch==2.10.0+cpu"),
        (False, "2.1", "torch==2.1"),
        (False, "2.12.1", "torch==2.12.1"),
        (True, None, "torch"),
        (True, "2.10", "torch==2.10"),
    ],
)
def test_the_cpu_build_is_taken_where_there_is_one(
    gpu: bool, version: str | None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "torch (2.15.0)\nAvailable versions: 2.15.0, 2.13.0+cpu, 2.13.0, 2.12.1, 2.10.0+cpu, 2.10.0\n"
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 0, listed, ""))
    monkeypatch.setattr(environment.shutil, "which", lambda name: "/bin/nvidia-smi" if gpu else None)
    assert environment.torch_for("python", version) == asked
