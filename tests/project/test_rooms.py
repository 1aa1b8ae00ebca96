"""The short run on the oldest versions enters every room of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import rooms

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_has_every_room_and_its_tests_are_there() -> None:
    assert set(rooms.rooms()) - set(rooms.TESTS) == set(), "give each a test that enters it, in the table of rooms.py"
    assert set(rooms.TESTS) - set(rooms.rooms()) == set(), "no such file of hf_eft has functions"
    for wanted in rooms.TESTS.values():
        file, _, name = wanted.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name.partition("[")[0] in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, wanted


def test_a_room_is_entered_when_a_function_of_it_runs(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import os\n\n\ndef one():\n    return 1\n")
    (tmp_path / "two.py").write_text("class Two:\n    x = 1\n\n    def two(self):\n        return 2\n")
    (tmp_path / "none.py").write_text("ONE = 1\n")
    ran = {str(tmp_path / "one.py"): {1, 4, 5}, str(tmp_path / "two.py"): {1, 2, 4}}  # importing runs the lines of `def` only
    assert rooms.empty(ran, tmp_path) == ["two.py"]


def test_of_a_test_with_parameters_one_set_is_chosen() -> None:
    wanted = next(iter(rooms.TESTS.values()))
    assert rooms.chosen([f"tests/{wanted}[a]", f"tests/{wanted}[b]", "tests/test_other.py::test_x"]) == {f"tests/{wanted}[a]"}
