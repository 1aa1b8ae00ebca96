"""
Make a virtual environment with torch in it, as every other environment of this project begins.

    python tests/environment.py FOLDER [VERSION OF TORCH]

Where there is no GPU the CPU build is taken, if the package index that pip is set up with has one (`PIP_EXTRA_INDEX_URL` adds
an index): the default build downloads gigabytes of CUDA libraries. Without a version it is the newest. Needs Python and pip only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def cpu_builds(python: str) -> list[str]:
    """The CPU builds of torch that the index has for a Python, newest first."""
    listed = subprocess.run([python, "-I", "-m", "pip", "index", "versions", "torch"], capture_output=True, text=True).stdout
    return re.findall(r"[\d.]+\+cpu", listed)


def torch_for(python: str, version: str | None = None) -> str:
    """What to ask pip for."""
    builds = [] if shutil.which("nvidia-smi") else cpu_builds(python)
    if version is None:
        return f"torch=={builds[0]}" if builds else "torch"
    same = [build for build in builds if re.fullmatch(rf"{re.escape(version)}(\.0)*\+cpu", build)]
    return f"torch=={same[0] if same else version}"


def make(folder: Path, version: str | None = None) -> str:
    """Make the environment, unless it is there; returns the path of its Python."""
    python = str(folder.resolve() / "bin" / "python")
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([python, "-I", "-m", "pip", "install", "-q", torch_for(python, version)], check=True)
    return python


def wheel(folder: Path, *options: str) -> Path:
    """Build the package's wheel into a folder, out of a copy of its sources, so that nothing built before gets into it."""
    source = folder / "source"
    shutil.copytree(ROOT / "hf_eft", source / "hf_eft", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *options, "-w", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    make(Path(sys.argv[1]), *sys.argv[2:])
