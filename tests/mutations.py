"""
Plant faults, one at a time, in a copy of the package, and see the tests fail.

    python tests/mutations.py                  # every fault
    python tests/mutations.py reorder crop     # those whose name contains one of the words

A fault that no test notices is a hole in the tests: the script then exits with 1.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

try:
    import tomllib
except ImportError:  # Python 3.10, which vLLM runs on; pytest brings it there
    import tomli as tomllib  # type: ignore[import-not-found, no-redef]

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


@contextlib.contextmanager
def planted(fault: Fault, root: Path, package: str) -> Iterator[str]:
    """A folder with a copy of a package and its tests, with the fault planted."""
    with tempfile.TemporaryDirectory() as folder:
        for part in (package, "tests"):
            shutil.copytree(root / part, Path(folder) / part)
        shutil.copy(root / "pyproject.toml", folder)
        path = Path(folder) / package / fault.file
        text = path.read_text()
        if text.count(fault.code) != 1:
            raise SystemExit(
                f"{fault.name}: the code to change is there {text.count(fault.code)} times in {fault.file}, expected once."
            )
        path.write_text(text.replace(fault.code, fault.planted))
        yield folder


def run(fault: Fault, folder: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the tests of a fault in the folder where it is planted."""
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {fault.tests}"
    # `python -m` puts the working directory first: the copy wins over an installed package.
    return subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout[-2000:] + done.stderr[-2000:]


def survives(fault: Fault) -> str | None:
    """What pytest said if the tests passed with the fault planted, else `None`."""
    with planted(fault, ROOT, "hf_eft") as folder:
        done = run(fault, folder)
    return None if done.returncode == 1 else said(done)


F = TypeVar("F", bound=Fault)


def plant_all(faults: Sequence[F], words: Sequence[str], survives: Callable[[F], str | None]) -> int:
    """Plant those whose name contains one of the words, say what became of each, and return the exit status."""
    chosen = [fault for fault in faults if not words or any(word in fault.name for word in words)]
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
    sys.exit(plant_all(faults(), sys.argv[1:], survives))
