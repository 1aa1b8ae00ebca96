"""Every file of `tests/attacks` builds an attack and is refused for the reason that its table gives."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ATTACKS = Path(__file__).parent / "attacks"
FILES = sorted(path.stem for path in ATTACKS.glob("*.py") if path.stem != "common")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it


@pytest.mark.parametrize("name", FILES)
def test_the_attack_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ATTACKS))
    spec = importlib.util.spec_from_file_location(f"attack_{name}", ATTACKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.attack(tmp_path)


def test_an_attack_runs_alone_and_tells_when_it_got_through(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, ATTACKS / "recipes.py"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("refused: ")
    code = f"import sys; sys.path.insert(0, {str(ATTACKS)!r})\nfrom common import *\nrun(lambda folder: refused('x', int))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith("GOT THROUGH: accepted")


def test_the_readme_lists_every_attack() -> None:
    listed = re.findall(r"^\| `(\w+)\.py` \|", (ATTACKS / "README.md").read_text(), flags=re.M)
    assert listed == FILES
