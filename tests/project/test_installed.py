"""What a user gets: the wheel, in a bare environment, with whatever versions pip chooses; warnings are errors there. `make installed`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import environment
import pytest

pytestmark = [pytest.mark.installed, pytest.mark.timeout(1800)]  # pip downloads

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment in which `pip install` took the wheel, and nothing else was asked for."""
    folder = tmp_path_factory.mktemp("bare")
    made = environment.make(folder / "environment")
    subprocess.run([made, "-I", "-m", "pip", "install", "-q", f"{environment.wheel(folder)}[cli]"], check=True)
    return made


def run(command: list[str], folder: Path) -> str:
    """What a command prints; it fails where it warns, or says on its error stream more than how far transformers is with loading."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    done = subprocess.run(command, cwd=folder, env={**kept, "PYTHONWARNINGS": "error"}, capture_output=True, text=True)
    said = [line for line in re.split(r"[\r\n]+", done.stderr) if line and not line.startswith("Loading weights:")]
    assert (done.returncode, said) == (0, []), done.stdout + done.stderr
    assert "warning" not in done.stdout.lower()
    return done.stdout


def test_pip_takes_the_release_that_is_tested(python: str, tmp_path: Path) -> None:
    """The newest within the range, or a patch of it, is what `constraints.txt` has."""
    pinned = re.search(r"^transformers==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert pinned is not None
    code = "import hf_eft, importlib.metadata as m; print(m.version('transformers')); print(hf_eft.__file__)"
    version, file = run([python, "-c", code], tmp_path).split()
    assert version.startswith(f"{pinned[1]}.")
    assert "site-packages" in file
    subprocess.run([python, "-I", "-m", "pip", "check"], check=True)


def test_the_first_block_of_the_readme(python: str, tmp_path: Path) -> None:
    block = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)[0]
    (tmp_path / "block.py").write_text(block)
    assert re.findall(r"^# prints: (.*)$", block, flags=re.M)[0] in run([python, "block.py"], tmp_path)


def test_the_demo(python: str, tmp_path: Path) -> None:
    assert "combination" in run([str(Path(python).parent / "hf-eft"), "demo"], tmp_path)
