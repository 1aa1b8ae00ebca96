"""Old names of modules that programs outside import: what answers the lines of a batch run, and what reads them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OLD = {"hf_eft.answer": "hf_eft.programs.answer", "hf_eft.batch": "hf_eft.programs.batch"}


class OldNames(MetaPathFinder, Loader):
    """Finds a module under its old name: the same object, with a warning."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in OLD else None

    def create_module(self, spec: ModuleSpec) -> Any:
        module = import_module(OLD[spec.name])
        self._own = module.__spec__
        warnings.warn(f"`{spec.name}` is called `{OLD[spec.name]}` now.", DeprecationWarning, stacklevel=2)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own  # which the import system has overwritten
