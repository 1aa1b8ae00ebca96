"""Commands that run the models for others, or against the clock: serve, playground, bench, demo."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app, console


@app.command()
def demo(
    questions: Annotated[int, typer.Option(min=1, help="How many held-out questions are shown.")] = 5,
    asked: Annotated[int, typer.Option(min=1, max=1200, help="How many are asked in all.")] = 120,
) -> None:
    """Ask the embedded family what fine-tuning never showed it: the small tuned model, the large base and the combination."""
    from ..demo import run_demo

    run_demo(console, questions, max(questions, asked))
