"""
Print what an environment of the oldest versions is installed with: the lower bounds of pyproject.toml as exact versions.

    python tests/floors.py            # for pip's `-c`, one a line
    python tests/floors.py torch      # the version of one package

What pyproject.toml does not name stays as constraints.txt has it. No second list of floors is kept, so that none can disagree.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BOUNDED = re.compile(r"(?P<name>[\w-]+)(\[[\w,]+\])?>=(?P<version>[\d.]+)(,<[\d.]+)?")


def requirements() -> list[str]:
    """All that pyproject.toml asks for: to run, with any extra, and to build."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = read["project"]["optional-dependencies"].values()
    return [*read["project"]["dependencies"], *read["build-system"]["requires"], *(each for extra in extras for each in extra)]


def floors(asked: list[str]) -> dict[str, str]:
    """
    The lower bound of every package that is asked for, once for all extras.

    Raises:
        `ValueError`: For a package without a bound, with two, or whose requirement says more than `>=` and `<`.
    """
    found: dict[str, str] = {}
    bounded = [_BOUNDED.fullmatch(requirement) for requirement in asked]
    for match in filter(None, bounded):
        name, version = match["name"], match["version"]
        if found.setdefault(name, version) != version:
            raise ValueError(f"{name} has two lower bounds, {found[name]} and {version}: keep one.")
    for requirement, match in zip(asked, bounded, strict=True):
        name, _, extras = requirement.partition("[")
        if match is None and name != "hf-eft" and not (extras and name in found):
            raise ValueError(f"{requirement!r} has no lower bound that is one version: write `name>=1.2` or `name>=1.2,<3`.")
    return found


def constraints() -> list[str]:
    """Lines for pip's `-c`."""
    lowest = floors(requirements())
    rest = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    return [
        *(f"{name}=={version}" for name, version in lowest.items()),
        *(line for line in rest if line.partition("==")[0].replace("_", "-") not in lowest),
    ]


if __name__ == "__main__":
    print(*([floors(requirements())[name] for name in sys.argv[1:]] or constraints()), sep="\n")
