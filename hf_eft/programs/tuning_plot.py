"""The picture of a tuning run: losses, strengths of use, and what the held-out answers became."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation import plots
from ..training.record import Record

_WIDE = 62  # characters of a line of text
_LONG = 180  # of an answer
_ANSWERED = 3  # looks at the held-out part whose answers are shown


def tuning_plot(record: Record, path: Path) -> Path:
    r"""
    Draw a run that is done, and write what it shows beside it.

    Args:
        record ([`~hf_eft.training.record.Record`]): The run.
        path (`Path`): The file of the picture.

    Returns:
        `Path`: The file of the data.
    """
    from matplotlib.figure import Figure

    with plots.style():
        figure = Figure(figsize=(11, 4))
        losses, strengths, answers = figure.subplots(1, 3, width_ratios=(1.3, 0.8, 1.6))
        steps = [each["step"] for each in record.losses]
        losses.plot(
            steps, [each["loss"] for each in record.losses], color=plots.colour("tuned"), label="training", linewidth=0.9
        )
        losses.plot(
            [each["step"] for each in record.held_out],
            [each["loss"] for each in record.held_out],
            color=plots.colour("combined"),
            label="held out",
            marker="o",
            markersize=3,
        )
        losses.set(title="Loss through the combination", xlabel="step", ylabel="nats a token")
        losses.legend()
        strengths.plot(
            [each["alpha"] for each in record.strengths],
            [each["loss"] for each in record.strengths],
            color=plots.colour("combined"),
            marker="o",
        )
        if record.recommended is not None:
            strengths.axvline(record.recommended, color=plots.colour("base"), linestyle=":", label="recommended")
            strengths.legend()
        strengths.set(title="Strength of use", xlabel="alpha", ylabel="held-out loss")
        _answers(answers, record)
        return plots.save(figure, path, asdict(record))


def _answers(axes: Any, record: Record) -> None:
    """What the first held-out prompts were answered with: by the base, half way, at the end."""
    axes.set_axis_off()
    axes.grid(visible=False)
    axes.set_title("What held-out answers became", loc="left")
    looks = record.held_out
    chosen = sorted({0, len(looks) // 2, len(looks) - 1}) if looks else []
    lines: list[str] = []
    for i, asked in enumerate(record.asked[:_ANSWERED]):
        lines += _wrapped("? ", asked["prompt"].replace("\n", " "))
        lines += [line for k in chosen for line in _wrapped(f"{looks[k]['step']}: ", looks[k]["answers"][i])]
        lines.append("")
    # No formulas: a dollar in an answer is one.
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=7, family="monospace", transform=axes.transAxes, parse_math=False)


def _wrapped(before: str, text: str) -> list[str]:
    shown = text if len(text) <= _LONG else text[: _LONG - 3] + "..."
    printable = "".join(c if c.isprintable() else " " for c in shown)
    return textwrap.wrap(printable, _WIDE, initial_indent=before, subsequent_indent=" " * len(before)) or [before]
