"""
Plant faults, one at a time, in a copy of the package, and see the tests fail.

    python tests/mutations.py                  # every fault
    python tests/mutations.py reorder crop     # those whose name contains one of the words

A fault that no test notices is a hole in the tests: the script then exits with 1.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    code: str  # found exactly once in the file
    planted: str
    tests: str  # what is run: files and a `-k` expression


def faults() -> list[Fault]:
    """The faults of every room, from the `faults.toml` beside its tests."""
    return [
        Fault(**fault)
        for path in sorted((ROOT / "tests").glob("*/faults*.toml"))
        for fault in tomllib.loads(path.read_text())["fault"]
    ]


def survives(fault: Fault) -> str | None:
    """What pytest said if the tests passed with the fault planted, else `None`."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("hf_eft", "tests"):
            shutil.copytree(ROOT / part, Path(folder) / part)
        shutil.copy(ROOT / "pyproject.toml", folder)
        path = Path(folder) / "hf_eft" / fault.file
        text = path.read_text()
        if text.count(fault.code) != 1:
            raise SystemExit(
                f"{fault.name}: the code to change is there {text.count(fault.code)} times in {fault.file}, expected once."
            )
        path.write_text(text.replace(fault.code, fault.planted))
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {fault.tests}"
        # `python -m` puts the working directory first: the copy wins over an installed package.
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    if done.returncode == 1:
        return None
    return done.stdout[-2000:] + done.stderr[-2000:]


def main(words: list[str]) -> int:
    chosen = [fault for fault in faults() if not words or any(word in fault.name for word in words)]
    survivors = 0
    for fault in chosen:
        output = survives(fault)
        print(f"{'caught  ' if output is None else 'SURVIVED'}  {fault.name}", flush=True)
        if output is not None:
            survivors += 1
            print(output)
    print(f"{len(chosen) - survivors} of {len(chosen)} faults caught")
    return int(survivors > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
