"""What a person sees in a terminal: answers side by side, and what the delta changed, coloured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .analysis import TokenEffect

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .compatibility import Finding
    from .tiny import Question


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
    table.add_column("facts right", min_width=28)
    table.add_column("in the tuned style", min_width=28)
    for name, replies in answers.items():
        right = sum(q.is_right(r) for q, r in zip(questions, replies, strict=True)) / len(questions)
        styled = sum(q.is_in_style(r) for q, r in zip(questions, replies, strict=True)) / len(questions)
        table.add_row(name, _bar(right), _bar(styled))
    return table


def effects_table(effects: Sequence[TokenEffect], tokenizer: PreTrainedTokenizerBase) -> Table:
    """
    An answer token by token: what the base alone would have said, and by how much the delta lifted what was said. The
    background is the total variation between the two distributions: blue, nothing changed; red, everything.
    """
    table = Table(title="What the delta changed, token by token")
    table.add_column("said", style="bold")
    table.add_column("base alone")
    table.add_column("p(base)", justify="right")
    table.add_column("p(combined)", justify="right")
    table.add_column("changed", min_width=24)
    for effect in effects:
        red = round(255 * effect.total_variation)
        alone = "same" if not effect.changed else _shown(effect.base_choice, tokenizer)
        table.add_row(
            Text(f" {_shown(effect.token, tokenizer)} ", style=f"white on rgb({red},60,{255 - red})"),
            Text(alone, style="yellow" if effect.changed else "dim"),
            f"{math.exp(effect.base_log_prob):.4f}",
            f"{math.exp(effect.combined_log_prob):.4f}",
            _bar(effect.total_variation),
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


def _shown(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return escape(tokenizer.decode([token]).strip()) or repr(tokenizer.decode([token]))


def _bar(share: float, width: int = 20) -> str:
    full = round(share * width)
    return "█" * full + "░" * (width - full) + f" {share:4.0%}"
