"""The package stands in storeys: what import-linter is told in `pyproject.toml`, and that it catches what it is there for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("members/devices.py", "def f():\n    from ..serving import EFTServer\n", "storeys"),  # in a function too
        ("folders/card.py", "if TYPE_CHECKING:\n    from ..hub import load\n", "storeys"),  # for types too
        ("members/recurrent.py", "from . import cache\n", "each other"),
        ("serving/errors.py", "from ..playground import dials\n", "storeys"),  # neighbours
        ("news.py", "", "storeys"),  # a room on no storey
        ("members/devices.py", "", None),
    ],
)
def test_a_wrong_import_is_caught(file: str, planted: str, broken: str | None, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "hf_eft", tmp_path / "hf_eft", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "hf_eft" / file).open("a") as target:
        target.write("\n" + planted)
    done = linted(tmp_path)
    assert (done.returncode == 0) is (broken is None), done.stdout
    said = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(broken in line for line in said) if broken else not said, done.stdout


def test_the_picture_is_of_this_code() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "pictures"))
    try:
        import storeys
    finally:
        sys.path.pop(0)
    assert storeys.PICTURE.read_text() == storeys.drawn(), "draw it anew: python docs/pictures/storeys.py"


_BEFORE = """
import sys
import transformers.generation, transformers.modeling_utils
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin
packages = lambda: {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)
before = packages()
"""
_WITH_TYPER = {"annotated_doc", "click", "markdown_it", "mdurl", "pygments", "shellingham"}
_AFTER = "print(*sorted(packages() - before))"


@pytest.mark.parametrize(
    ("imports", "brought"),
    [
        ("from hf_eft import EFTForCausalLM, EFTLogitsProcessor", []),
        (
            "import hf_eft.hub, hf_eft.analysis, hf_eft.evaluation, hf_eft.grammar, hf_eft.playground, hf_eft.training, hf_eft.tiny",
            [],
        ),
        ("import hf_eft.cli", ["rich", "typer"]),
    ],
)
def test_an_import_brings_nothing_of_an_extra(imports: str, brought: list[str]) -> None:
    """Beside what transformers and torch bring: who does not use an extra does not wait for it, installed as it is here."""
    done = subprocess.run([sys.executable, "-c", _BEFORE + imports + "\n" + _AFTER], capture_output=True, text=True, check=True)
    found = {name for name in done.stdout.split() if not name.startswith("_")}
    assert found - (_WITH_TYPER if brought else set()) == {"hf_eft", *brought}
