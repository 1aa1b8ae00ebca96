"""What the reports of measurements have in common: a page of tables, and a program that makes it and the pictures again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def joined(head: str, parts: Mapping[str, Sequence[str]]) -> str:
    """A page: what it begins with, and the tables that have rows, as lines, by title."""
    kept = {title: lines for title, lines in parts.items() if len(lines) > 2}
    return "\n\n".join([head, *(f"### {title}\n\n" + "\n".join(lines) for title, lines in kept.items())]) + "\n"


def report(
    description: str,
    here: Path,
    arguments: Sequence[str] | None,
    collect: Callable[[Path], Any],
    page: Callable[[Any], str],
    pictures: Mapping[str, Callable[[Any, Path], Any]],
) -> None:
    r"""
    The program of a report: writes `results.json` (if there is a work folder to gather it from), `results.md`, and the pictures.

    Args:
        description (`str`): What the program says of itself: the first line is shown.
        here (`Path`): Where everything is written if the command does not say.
        arguments (`Sequence[str]`, *optional*): Those of the command line, if they are not the process's.
        collect (`Callable`): From a work folder to results.
        page (`Callable`): From results to the text of `results.md`.
        pictures (`Mapping[str, Callable]`): By the name of a file, who draws results into it.
    """
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--work", type=Path, help="the work folder of `run.py`; results.json if left out")
    parser.add_argument("--output", type=Path, default=here, help="where everything is written")
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "results.json"
    if args.work is not None:
        path.write_text(json.dumps(collect(args.work), ensure_ascii=False) + "\n")
    results = json.loads(path.read_text())
    for name, draw in pictures.items():
        draw(results, args.output / name)
    (args.output / "results.md").write_text(page(results))
    print(args.output / "results.md")
