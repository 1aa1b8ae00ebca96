"""Modules that programs outside import are found under their old names."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from hf_eft.programs.moved import OLD


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_is_the_same_module_with_a_warning(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    module = import_module(OLD[old])
    with pytest.warns(DeprecationWarning, match=OLD[old]):
        assert import_module(old) is module
    assert module.__spec__ is not None and module.__spec__.name == module.__name__ == OLD[old]
    monkeypatch.delitem(sys.modules, old)


def test_other_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="answers"):
        import_module("hf_eft.answers")
