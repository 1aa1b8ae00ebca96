"""Every file of `tests/attacks` builds an attack and is refused for the reason that its table gives."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ATTACKS = Path(__file__).parents[1] / "attacks"
FILES = sorted(path.stem for path in ATTACKS.glob("*.py") if path.stem != "common")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it


@pytest.mark.parametrize("name", FILES)
def test_the_attack_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ATTACKS))
    spec = importlib.util.spec_from_file_location(f"attack_{name}", ATTACKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.attack(tmp_path)


def test_an_attack_runs_alone() -> None:
    done = subprocess.run([sys.executable, ATTACKS / "recipes.py"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("refused: ")


def test_what_gets_through_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ATTACKS))
    import common

    for attack, said in {
        lambda folder: common.refused("x", int): "GOT THROUGH: accepted",
        lambda folder: common.refused("another reason", int, "x"): "GOT THROUGH: refused, but not because of",
    }.items():
        with pytest.raises(SystemExit, match="1"):
            common.run(attack)
        assert capsys.readouterr().out.startswith(said)


def test_the_readme_lists_every_attack() -> None:
    listed = re.findall(r"^\| `(\w+)\.py` \|", (ATTACKS / "README.md").read_text(), flags=re.M)
    assert listed == FILES
