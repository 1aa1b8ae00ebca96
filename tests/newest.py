"""
The suite on the newest of everything, beyond what pyproject.toml allows: what will break, before it does.

    python tests/newest.py ENVIRONMENT [options of pytest]

Installs without constraints, then takes transformers, peft and lm-eval as new as the index has them (torch is there, from
environment.py), runs the suite, and prints the versions and what passed and failed by file. Exits with 1 if anything failed.
"""

from __future__ import annotations

import collections
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMED = ("transformers", "torch", "peft", "lm-eval", "accelerate", "numpy", "gradio", "pytest")
OUTCOMES = ("passed", "failed", "skipped")


def install(python: str) -> None:
    """Everything that the tests need; the second command may go beyond our own cap, which pip then says and does."""
    pip = [python, "-I", "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-e", f"{ROOT}[test]"], check=True)
    subprocess.run([*pip, "--upgrade", "transformers[serving]", "peft", "lm-eval"], check=True)


def by_file(report: Path) -> dict[str, collections.Counter[str]]:
    """How the tests of each file ended, from pytest's JUnit report; a file that cannot be imported failed."""
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname") or case.get("name") or "?"
        file = next((part for part in name.split(".") if part.startswith("test_")), name)
        ended = {child.tag for child in case}
        found[file]["failed" if ended & {"failure", "error"} else "skipped" if "skipped" in ended else "passed"] += 1
    return dict(sorted(found.items()))


def table(results: dict[str, collections.Counter[str]]) -> str:
    """A row for each file in which something failed, and the sum of all."""
    total = sum(results.values(), collections.Counter())
    broken = {file: counts for file, counts in results.items() if counts["failed"]}
    rows = [(file, *(str(counts[outcome]) for outcome in OUTCOMES)) for file, counts in {**broken, "all": total}.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [("file", *OUTCOMES), ("---",) * 4, *rows])


def versions(python: str) -> str:
    """The installed versions of the packages that matter, in one line."""
    code = f"""
import platform
from importlib.metadata import version
print("Python " + platform.python_version(), *(f", {{name}} {{version(name)}}" for name in {NAMED!r}), sep="")
"""
    return subprocess.check_output([python, "-c", code], text=True).strip()


def main(folder: str, options: list[str]) -> int:
    python = str(Path(folder).resolve() / "bin" / "python")
    install(python)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        subprocess.run([python, "-m", "pytest", "-n", "2", "-q", f"--junitxml={report}", *options], cwd=ROOT)
        if not report.exists():
            print("pytest wrote no report: it could not start.")
            return 1
        results = by_file(report)
    print(f"\n{versions(python)}\n\n{table(results)}")
    return int(not results or any(counts["failed"] for counts in results.values()))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
