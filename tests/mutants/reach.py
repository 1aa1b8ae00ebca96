"""Which tests run which line: each file of tests is run once under coverage, and what came out is kept."""

from __future__ import annotations

import ast
import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from . import fork
from .targets import ROOMS, ROOT, name_of, sources

_CPU, _WALL = 1800.0, 5400.0  # seconds for one file of tests, many times what any takes


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class Trace:
    """As a plugin: under which test each line ran, and how long each test that passed took."""

    def __init__(self, files: list[Path]) -> None:
        import coverage

        self._seen = coverage.Coverage(data_file=None, include=[str(each) for each in files])
        self._seen.set_option("run:disable_warnings", ["no-data-collected"])
        self._seen.start()
        self._seconds: dict[str, float] = {}
        self._not_passed: set[str] = set()
        self._began = 0.0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._seen.switch_context(nodeid)
        self._began = time.process_time()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._not_passed.add(report.nodeid)  # one that was skipped sees nothing either

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._seconds[nodeid] = round(time.process_time() - self._began, 3)
        self._seen.switch_context("")

    def found(self, files: list[Path]) -> dict[str, Any]:
        self._seen.stop()
        data = self._seen.get_data()
        names = [name for name in self._seconds if name not in self._not_passed]
        number = {name: n for n, name in enumerate(names)}
        lines: dict[str, dict[int, list[int]]] = {}
        for path in files:
            by_line = data.contexts_by_lineno(str(path))
            lines[name_of(path)] = {
                line: ran for line, contexts in by_line.items() if (ran := sorted(number[c] for c in contexts if c in number))
            }
        return {"tests": [[name, self._seconds[name]] for name in names], "lines": lines, "failed": sorted(self._not_passed)}


def profile(name: str, files: list[Path]) -> dict[str, Any]:
    """Run a file of tests under coverage, in a fork."""

    def call(folder: Path) -> dict[str, Any]:
        trace = Trace(files)
        fork.pytest_in(folder, [name], trace)
        return {"modules": fork.slow_modules(), **trace.found(files)}

    run = fork.Run(call, _CPU, _WALL)
    answer, said = fork.wait(run)
    if "died" in answer or not answer["tests"]:
        raise RuntimeError(f"{name} could not be run: {answer.get('died', 'no test passed')}.\n{said}")
    return answer


class Reach:
    """
    Which tests run a line.

    A file of tests is profiled again when it changes. When a file of the package changes, its numbers of lines are no longer
    those of the profiles: until `--profile` makes them anew, every test that ran any line of it counts.

    Args:
        folder (`Path`): Where the profiles are kept, one for each file of tests.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, dict[str, Any]] = {}

    def missing(self, name: str) -> bool:
        """Whether a file of tests has no profile."""
        return self._of(name).get("digest") != digest(ROOT / name)

    def measure(self, name: str) -> list[str]:
        """Profile a file of tests; gives those of its tests that did not pass."""
        files = [path for room in ROOMS for path in sources(room)]
        found = profile(name, files)
        self._kept[name] = {"digest": digest(ROOT / name), "sources": {name_of(each): digest(each) for each in files}, **found}
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(name).write_text(json.dumps(self._kept[name]))
        return list(found["failed"])

    def modules(self, names: list[str]) -> list[str]:
        """The slow modules that these files of tests import."""
        return sorted({module for name in names for module in self._of(name).get("modules", ())})

    def tests(self, source: Path, lines: range | None, names: list[str]) -> list[tuple[str, float]]:
        """
        The tests of these files that run one of these lines (`None`: all, for what runs on import), with their seconds.

        The quick ones come first, one of each function before others of it: they ask different things.
        """
        found: list[tuple[str, float]] = []
        for name in names:
            kept = self._of(name)
            every = [(test, seconds) for test, seconds in kept["tests"]]
            at = kept["lines"].get(name_of(source))
            if lines is None or at is None:
                found += every
                continue
            exact = kept["sources"][name_of(source)] == digest(source)
            ran = {n for line, tests in at.items() if not exact or int(line) in lines for n in tests}
            found += [every[n] for n in sorted(ran)]
        found.sort(key=lambda each: each[1])
        seen: Counter[str] = Counter()
        turns = []
        for test, seconds in found:
            function = test.partition("[")[0]
            turns.append((seen[function], test, seconds))
            seen[function] += 1
        turns.sort(key=lambda each: each[0] > 0)
        return [(test, seconds) for _, test, seconds in turns]

    def _path(self, name: str) -> Path:
        return self._folder / f"{Path(name).stem}.json"

    def _of(self, name: str) -> dict[str, Any]:
        if name not in self._kept:
            path = self._path(name)
            self._kept[name] = json.loads(path.read_text()) if path.exists() else {}
        return self._kept[name]


def lines_of(text: str, line: int) -> range | None:
    """
    The lines that run when what is on this line runs: its statement, of a compound one the head only.

    What stands in the head of a function (defaults, decorators) matters where the function runs; `None` for what runs on import
    and is in no function.
    """
    found: range | None = None
    inside = False
    for node in ast.walk(ast.parse(text)):  # what is inside of a node comes after it
        if not isinstance(node, (ast.stmt, ast.ExceptHandler)) or isinstance(node, ast.ClassDef):
            continue
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        last = node.end_lineno or node.lineno
        if not first <= line <= last:
            continue
        body = getattr(node, "body", None)
        head = range(first, max(first, body[0].lineno - 1) + 1) if body else range(first, last + 1)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = True
            found = range(node.body[0].lineno, last + 1)
        elif line in head:
            found = head
    return found if inside else None
