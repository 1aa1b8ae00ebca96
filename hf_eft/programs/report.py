"""What a person sees in a terminal: answers side by side, and what the delta changed, coloured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..analysis.records import Analysis
    from ..hub.compatibility import Finding
    from ..tiny import Question


def answers_table(questions: Sequence[Question], answers: dict[str, list[str]]) -> Table:
    """Each question with every system's answer: right facts green, wrong ones red."""
    table = Table(title="Held-out questions", show_lines=True)
    table.add_column("question", style="bold")
    table.add_column("the fact")
    for name in answers:
        table.add_column(name, ratio=1)
    for i, question in enumerate(questions):
        cells = [Text(reply[i].strip(), style="green" if question.is_right(reply[i]) else "red") for reply in answers.values()]
        table.add_row(question.text, question.answer, *cells)
    return table


def score_table(questions: Sequence[Question], answers: dict[str, list[str]]) -> Table:
    """How many facts are right and how many answers are in style, for every system, with bars."""
    table = Table(title=f"All {len(questions)} questions asked")
    table.add_column("system", style="bold")
    table.add_column("facts right", no_wrap=True)
    table.add_column("in the tuned style", no_wrap=True)
    for name, replies in answers.items():
        right = sum(q.is_right(r) for q, r in zip(questions, replies, strict=True)) / len(questions)
        styled = sum(q.is_in_style(r) for q, r in zip(questions, replies, strict=True)) / len(questions)
        table.add_row(name, _bar(right, 14), _bar(styled, 14))  # so that 80 columns hold it
    return table


def analysis_table(analysis: Analysis, console_width: int | None = None) -> Table:
    """
    A continuation token by token: what the base (without one, the member compared with) would have said alone, how likely both find what
    was said, what the delta says of it, and by how much the distribution changed. The background is that total variation: blue, nothing
    changed; red, everything.

    Args:
        analysis ([`Analysis`]): What is shown.
        console_width (`int`, *optional*): Columns of the terminal; below 100, only what fits into 80 is shown.

    Returns:
        `rich.table.Table`: A row for each token. The caption is the sequence in numbers.
    """
    wide = console_width is None or console_width >= 100
    table = Table(title="What the delta changed, token by token", caption=_caption(analysis))
    table.add_column("said", style="bold")
    table.add_column(f"{analysis.against} alone")
    table.add_column(f"p({analysis.against})", justify="right")
    table.add_column("p(combined)", justify="right")
    if wide:
        for name in analysis.records[0].deltas:
            table.add_column("delta" if len(analysis.tuned) == 1 else f"delta {name}", justify="right")
        table.add_column("changed by")
    table.add_column("total variation", min_width=24 if wide else 14)
    for record in analysis.records:
        variation = record.total_variation[analysis.against]
        red = round(255 * variation)
        choice = record.choices[analysis.against]
        other = choice.id != record.token.id
        more = [f"{delta:+.2f}" for delta in record.deltas.values()] + [record.changed_by or ""] if wide else []
        table.add_row(
            Text(f" {_shown(record.token.text)} ", style=f"white on rgb({red},60,{255 - red})"),
            Text(_shown(choice.text) if other else "same", style="yellow" if other else "dim"),
            f"{math.exp(record.log_probs[analysis.against]):.4f}",
            f"{math.exp(record.log_prob):.4f}",
            *more,
            _bar(variation, 20 if wide else 8),
        )
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """What was looked at before any weights were loaded; what is refused stands out."""
    table = Table(title="Do these models go together?", show_lines=False)
    table.add_column("")
    table.add_column("subject", style="bold", no_wrap=True)
    table.add_column("found", ratio=1)
    marks = {"ok": ("✓", "green"), "note": ("!", "yellow"), "refused": ("✗", "red")}
    for finding in findings:
        mark, colour = marks[finding.level]
        table.add_row(
            Text(mark, style=colour), finding.subject, Text(finding.text, style=colour if finding.level == "refused" else "")
        )
    return table


def _caption(analysis: Analysis) -> str:
    numbers = analysis.summary()
    reward = f", implicit reward {analysis.records[-1].reward:+.2f}" if analysis.records[-1].reward is not None else ""
    return f"{analysis.recipe}: {numbers['tokens']} tokens, the choice changed at {numbers['changed']:.0%} of them{reward}"


def _shown(text: str) -> str:
    """A token in one line, whatever it is made of: nothing in it moves the cursor or turns the text around."""
    stripped = text.strip()
    return stripped if stripped.isprintable() and stripped else repr(text)[1:-1] if text else "…"


def _bar(share: float, width: int) -> str:
    full = round(share * width)
    return "█" * full + "░" * (width - full) + f" {share:4.0%}"
