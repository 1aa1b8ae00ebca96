"""Every Python block of the documentation and of the docstrings runs; every public name is documented."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import environment
import pytest

import hf_eft

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # TRL 1.16 names it so
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page are one program, tests in it are run; `# prints:` is followed by what the line above it prints."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks(page, "python"):
        capsys.readouterr()
        exec(compile(block, str(page), "exec"), namespace)
        printed = capsys.readouterr().out
        for expected in re.findall(r"^# prints: (.*)$", block, flags=re.M):
            assert expected in printed, printed
    for name, value in namespace.items():
        if name.startswith("test_"):
            value()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run one after the other in a folder that has a file of prompts; those with a `<` are for the reader."""
    from typer.testing import CliRunner

    from hf_eft.cli import app

    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("What does Oscar Palmer enjoy?\nWhere was Oscar Palmer born?\n")
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            if line.startswith("hf-eft ") and "<" not in line:
                done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
                assert done.exit_code == 0, done.output


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_print_what_they_show(path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    shown = nbformat.read(path, 4)
    again = nbformat.read(path, 4)
    NotebookClient(again, timeout=300, kernel_name="python3").execute()
    for cell, expected in zip(again.cells, shown.cells, strict=True):
        assert printed(cell) == printed(expected)


def printed(cell: Any) -> str:
    return "".join(output["text"] for output in cell.get("outputs", []) if output.get("name") == "stdout")


def test_the_first_block_of_the_readme_runs_from_the_wheel(tmp_path: Path) -> None:
    """What is built holds all that a newcomer needs: the block, no longer than 12 lines, in a folder of its own."""
    block = blocks(ROOT / "README.md", "python")[0]
    assert block.count("\n") <= 12
    with zipfile.ZipFile(environment.wheel(tmp_path, "--no-build-isolation")) as wheel:
        wheel.extractall(tmp_path / "installed")
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    where = f"import hf_eft; assert hf_eft.__file__.startswith({str(tmp_path)!r})\n"
    code = [sys.executable, "-c", where + block]
    done = subprocess.run(code, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert re.findall(r"^# prints: (.*)$", block, flags=re.M)[0] in done.stdout


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages(hf_eft.__path__, "hf_eft.")]


@pytest.mark.parametrize("module", modules())
def test_docstring_examples_run(module: str) -> None:
    loaded = importlib.import_module(module)
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for name, value in list(vars(loaded).items()):  # an example may import a submodule
        if getattr(value, "__module__", None) != module or not value.__doc__:
            continue
        for i, block in enumerate(re.findall(r"^ *```python\n(.*?)^ *```", value.__doc__, flags=re.M | re.S)):
            example = parser.get_doctest(block, {}, f"{name}[{i}]", loaded.__file__, 0)
            assert example.examples, f"{name} has a block without an example"
            runner.run(example)
    assert runner.failures == 0


def test_every_public_name_is_documented() -> None:
    pages = "".join(page.read_text() for page in PAGES)
    for name in hf_eft.__all__:
        if not name.startswith("_"):
            assert f"`{name}" in pages, f"{name} is in no page"
            assert getattr(hf_eft, name).__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("module", modules())
def test_every_public_function_has_a_docstring(module: str) -> None:
    tree = ast.parse(Path(importlib.import_module(module).__file__).read_text())
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"
