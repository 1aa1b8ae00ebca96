"""The command line, called in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from hf_eft import tiny
from hf_eft.cli import app

WHO = "What does Oscar Palmer enjoy?"
EMBEDDED = [f"--{name}={tiny.path(name)}" for name in ("base", "tuned", "reference")]


def invoke(*arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(app, list(arguments), **options)
