"""Work in a fork of a process that has imported what takes seconds, torch and transformers, and nothing of the package."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from .targets import PACKAGE, ROOT

_GIB = 2**30
_MEMORY = 10 * _GIB  # what a fork may allocate: a mutant that appends for ever ends in a MemoryError
_OURS = {PACKAGE.name, "mutants"}
# Slow to import, and nothing of the tests or the package changes what they are.
_SLOW = ("torch", "transformers", "peft", "accelerate", "numpy", "safetensors", "tokenizers", "huggingface_hub")


def warm(modules: Iterable[str] = ()) -> None:
    """Import torch, transformers and those of these modules that belong to the slow ones."""
    # What `conftest.py` sets before it imports them. Without the other plugins of the environment: pytest warns of those that
    # were imported before it could rewrite them.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="warning", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    import transformers.generation  # noqa: F401

    torch.set_num_threads(1)
    for name in modules:
        with contextlib.suppress(Exception):  # one that cannot be imported alone is imported by what needs it
            importlib.import_module(name)
    for folder in (ROOT / "tests", ROOT):
        while str(folder) in sys.path:
            sys.path.remove(str(folder))
        sys.path.insert(0, str(folder))
    begun = [name for name in sys.modules if name.partition(".")[0] == PACKAGE.name]
    if begun:
        raise RuntimeError(f"{', '.join(begun[:3])} was imported before the fork, so no mutant of it would be.")


def slow_modules() -> list[str]:
    """Which of the slow modules are imported now."""
    return sorted(name for name in sys.modules if name.partition(".")[0] in _SLOW)


class Planted(importlib.abc.MetaPathFinder):
    """Imports one file of the package with other text: nothing is written, so nothing has to be put back."""

    def __init__(self, source: Path, text: str) -> None:
        parts = source.relative_to(ROOT).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.source, self.text = source, text

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.source, loader=_Loader(self.text, fullname, self.source))


class _Loader(SourceFileLoader):
    def __init__(self, text: str, name: str, source: Path) -> None:
        super().__init__(name, str(source))
        self._text = text

    def get_code(self, fullname: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an error here, so that `is "text"` would fail without any test
            return compile(self._text, self.path, "exec", dont_inherit=True)


class Run:
    """
    A call in a fork, which leads a group of processes of its own.

    Args:
        call (`Callable[[Path], dict]`): Is given a folder of its own, and gives what can be written as JSON.
        cpu (`float`): Seconds of processor time after which it is ended.
        wall (`float`): Seconds after which it is ended if it waits: long, since a machine may be busy with something else. `poll` counts
            them, and has to be called more than once a second.
    """

    def __init__(self, call: Callable[[Path], dict[str, Any]], cpu: float, wall: float) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutant-"))
        self._answer = self.folder / "answer.json"
        self.began = self._seen = time.monotonic()
        self._left = wall
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._child(call, cpu)

    def _child(self, call: Callable[[Path], dict[str, Any]], cpu: float) -> None:
        status = 1
        try:
            os.setsid()
            log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            used = int(time.process_time())  # a fork starts from nothing, but the limit is for whole seconds
            resource.setrlimit(resource.RLIMIT_CPU, (used + max(1, int(cpu)), resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.chdir(ROOT)
            answer = json.dumps(call(self.folder))
            self._answer.write_text(answer)
            status = 0
        except BaseException:  # whatever it is, it is said and ends here: the rest of the program is the parent's
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> dict[str, Any] | None:
        """What the call gave, or `{"died": why}`; `None` while it runs."""
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        if not ended:
            # Only while somebody looks: where all of it is stopped for a while, no time is up.
            self._seen, before = time.monotonic(), self._seen
            self._left -= min(self._seen - before, 1.0)
            if self._left > 0:
                return None
            self.end()
            return {"died": "timed out"}
        with contextlib.suppress(ProcessLookupError):  # what it started and left running
            os.killpg(self._pid, signal.SIGKILL)
        self._pid = 0
        if self._answer.exists() and status == 0:
            answer: dict[str, Any] = json.loads(self._answer.read_text())
            return answer
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"
        return {"died": "timed out" if name == "SIGXCPU" else name}

    def said(self) -> str:
        log = self.folder / "log.txt"
        return log.read_text(errors="replace") if log.exists() else ""

    def end(self) -> None:
        """End it and whatever it started."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def wait(run: Run) -> tuple[dict[str, Any], str]:
    """What a run gave, and the end of what it said; forgets it."""
    try:
        while (answer := run.poll()) is None:
            time.sleep(0.05)
        return answer, run.said()[-3000:]
    finally:
        run.end()
        run.forget()


class Chosen:
    """As a plugin: runs these tests only, in this order, and notes the first that fails."""

    def __init__(self, tests: list[str]) -> None:
        self._order = {name: n for n, name in enumerate(tests)}
        self.failed: str | None = None
        self.ran = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((each for each in items if each.nodeid in self._order), key=lambda each: self._order[each.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed and self.failed is None:
            self.failed = report.nodeid


def pytest_in(folder: Path, files: Iterable[str], *plugins: object, options: Iterable[str] = ()) -> int:
    """What pytest returns for these files, with its files in a folder of the run."""
    given = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "pytest_timeout", f"--basetemp={folder / 'tmp'}"]
    return int(pytest.main([*given, *options, *dict.fromkeys(files)], plugins=list(plugins)))
