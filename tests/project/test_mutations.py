"""The planted faults are where the code is: one that finds no line, or two, plants nothing."""

from __future__ import annotations

import ast

from mutations import ROOT, faults


def test_every_planted_fault_is_other_code_that_runs() -> None:
    """One that is no Python fails in every test, or in none, whatever they hold."""
    for fault in faults():
        if fault.file.endswith(".py"):
            code = (ROOT / "hf_eft" / fault.file).read_text()
            ast.parse(code.replace(fault.code, fault.planted), fault.name)
        assert fault.code != fault.planted, fault.name


def test_every_planted_fault_finds_its_line() -> None:
    lost = [fault.name for fault in faults() if (ROOT / "hf_eft" / fault.file).read_text().count(fault.code) != 1]
    assert not lost
    files = {word for fault in faults() for word in fault.tests.split() if word.endswith(".py")}
    assert not [name for name in files if not (ROOT / name).exists()]
