"""
Plant faults, one at a time, in a copy of the plugin, and see the tests fail.

    EFT_ORACLE=ORACLE python vllm_eft/tests/faults.py                 # every fault of faults.toml
    EFT_ORACLE=ORACLE python vllm_eft/tests/faults.py window weights  # those whose name contains one of the words

A fault that no test notices is a hole in the tests: the script then exits with 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10, which vLLM runs on; pytest brings it there
    import tomli as tomllib

PLUGIN = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    code: str  # found exactly once in the file
    planted: str
    tests: str  # what is run: files and a `-k` expression
    v2: bool = False  # under the V2 model runner


def faults() -> list[Fault]:
    return [Fault(**fault) for fault in tomllib.loads((PLUGIN / "tests" / "faults.toml").read_text())["fault"]]


def survives(fault: Fault) -> str | None:
    """What pytest said if the tests did not fail of the planted fault, else `None`."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("vllm_eft", "tests"):
            shutil.copytree(PLUGIN / part, Path(folder) / part)
        shutil.copy(PLUGIN / "pyproject.toml", folder)
        path = Path(folder) / "vllm_eft" / fault.file
        text = path.read_text()
        if text.count(fault.code) != 1:
            raise SystemExit(
                f"{fault.name}: the code to change is there {text.count(fault.code)} times in {fault.file}, expected once."
            )
        path.write_text(text.replace(fault.code, fault.planted))
        # Processes of vLLM's own import the copy as well, and compile nothing into anybody else's cache.
        env = {
            **os.environ,
            "PYTHONPATH": folder,
            "VLLM_USE_V2_MODEL_RUNNER": str(int(fault.v2)),
            "VLLM_CACHE_ROOT": f"{folder}/cache",
        }
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider {fault.tests}"
        done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode == 1 and "failed" in done.stdout.splitlines()[-1]:  # an error before the test is no failure of it
        return None
    return done.stdout[-2000:] + done.stderr[-2000:]


def main(words: list[str]) -> int:
    if not os.environ.get("EFT_ORACLE"):
        raise SystemExit("EFT_ORACLE must name a folder that vllm_eft/tests/oracle.py wrote: without it tests are skipped.")
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
