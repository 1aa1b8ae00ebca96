"""
Plant faults, one at a time, in a copy of the plugin, and see the tests fail.

    EFT_ORACLE=ORACLE python vllm_eft/tests/faults.py                 # every fault of faults.toml
    EFT_ORACLE=ORACLE python vllm_eft/tests/faults.py window weights  # those whose name contains one of the words

A fault that no test notices is a hole in the tests: the script then exits with 1.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PLUGIN.parent / "tests"))  # of the repository

from mutations import Fault, plant_all, planted, run, said, tomllib  # noqa: E402


@dataclass(frozen=True)
class PluginFault(Fault):
    v2: bool = False  # under the V2 model runner


def faults() -> list[PluginFault]:
    return [PluginFault(**fault) for fault in tomllib.loads((PLUGIN / "tests" / "faults.toml").read_text())["fault"]]


def survives(fault: PluginFault) -> str | None:
    """What pytest said if the tests did not fail of the planted fault, else `None`."""
    with planted(fault, PLUGIN, "vllm_eft") as folder:
        # Processes of vLLM's own import the copy as well, and compile nothing into anybody else's cache.
        env = {
            **os.environ,
            "PYTHONPATH": folder,
            "VLLM_USE_V2_MODEL_RUNNER": str(int(fault.v2)),
            "VLLM_CACHE_ROOT": f"{folder}/cache",
        }
        done = run(fault, folder, env)
    if done.returncode == 1 and "failed" in done.stdout.splitlines()[-1]:  # an error before the test is no failure of it
        return None
    return said(done)


if __name__ == "__main__":
    if not os.environ.get("EFT_ORACLE"):
        raise SystemExit("EFT_ORACLE must name a folder that vllm_eft/tests/oracle.py wrote: without it tests are skipped.")
    sys.exit(plant_all(faults(), sys.argv[1:], survives))
