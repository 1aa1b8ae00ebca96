"""What a person sees of an evaluation: a table in the terminal, and a picture with its data beside it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from . import plots
from .scores import COMBINED, TUNED_LARGE, Evaluation


def evaluation_table(evaluation: Evaluation) -> Any:
    """
    A row for each metric, a column for each system, and the difference of the combination and each small tuned model over the same items
    with its interval: green where the combination is better, red where it is worse by more than chance.

    Returns:
        `rich.table.Table`
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    with_gap = TUNED_LARGE in evaluation.systems and len(evaluation.small_tuned) == 1
    compared = evaluation.small_tuned if COMBINED in evaluation.systems else []
    table = Table(
        title="Side by side on the same items",
        caption="(items)  ↑ higher is better, ↓ lower  \\[interval of 95 %]",
        box=SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for system in evaluation.systems:
        table.add_column(system.replace("_", " "), justify="right")
    for small in compared:
        table.add_column(f"combined - {small}", justify="right")
    if with_gap:
        table.add_column("gap recovered", justify="right")
    task_before = None
    for task, metric in evaluation.metrics():
        first = evaluation.score(evaluation.systems[0], task, metric)
        if task != task_before:
            table.add_row(f"[bold]{escape(task)}[/] ({first.n})")
            task_before = task
        cells = [f" {escape(metric)} {'↑' if first.higher_is_better else '↓'}"]
        cells += [f"{evaluation.score(system, task, metric).value:.4g}" for system in evaluation.systems]
        if first.items is not None:
            cells += [_difference(evaluation, small, task, metric) for small in compared]
            cells += [_gap(evaluation, task, metric)] if with_gap else []
        table.add_row(*cells)
    return table


def evaluation_plot(evaluation: Evaluation, path: str | Path) -> Path:
    """
    A panel for each metric: every system's score with its interval of 95 %.

    Args:
        evaluation ([`~hf_eft.evaluation.scores.Evaluation`]): What was measured.
        path (`str` or `Path`): The picture's file, in any format of matplotlib.

    Returns:
        `Path`: The file with the picture's data, beside it.

    Raises:
        `ImportError`: If matplotlib is not installed.
        `ValueError`: If no metric has an interval.
    """
    shown = {
        f"{task}, {metric}": {
            "higher_is_better": evaluation.score(evaluation.systems[0], task, metric).higher_is_better,
            "systems": {
                system: {"value": i.value, "low": i.low, "high": i.high, "items": i.items, "method": i.method}
                for system in evaluation.systems
                for i in [evaluation.interval(system, task, metric)]
            },
        }
        for task, metric in evaluation.metrics()
        if evaluation.score(evaluation.systems[0], task, metric).items is not None
    }
    if not shown:
        raise ValueError("There is nothing to draw: no metric has scores of items.")
    with plots.style():
        figure = _panels(evaluation.systems, shown)
    return plots.save(figure, path, {"settings": evaluation.settings, "panels": shown})


def _panels(systems: Sequence[str], shown: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.4 * columns, (0.9 + 0.3 * len(systems)) * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (title, found) in zip(panels, shown.items(), strict=False):
        for place, system in enumerate(systems):
            each = found["systems"][system]
            if not math.isfinite(each["value"]):  # nowhere on the axis
                panel.text(0.02, place, f"{each['value']:g}", va="center", transform=panel.get_yaxis_transform())
                continue
            whiskers = [[each["value"] - each["low"]], [each["high"] - each["value"]]]
            panel.errorbar([each["value"]], [place], xerr=whiskers, fmt="o", capsize=3, color=plots.colour(system))
        panel.set_yticks(range(len(systems)), systems)
        panel.set_ylim(len(systems) - 0.5, -0.5)
        panel.set_title(f"{title} {'↑' if found['higher_is_better'] else '↓'}")
        panel.grid(axis="y", visible=False)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    return figure


def _difference(evaluation: Evaluation, small: str, task: str, metric: str) -> str:
    difference = evaluation.compare(COMBINED, small, task, metric)
    style = "dim"
    if evaluation.is_worse(COMBINED, small, task, metric):
        style = "bold red"
    elif evaluation.is_worse(small, COMBINED, task, metric):
        style = "green"
    return f"[{style}]{difference.value:+.3g} \\[{difference.low:+.2g}, {difference.high:+.2g}][/]"


def _gap(evaluation: Evaluation, task: str, metric: str) -> str:
    with contextlib.suppress(ValueError):  # no gap, or no scores of items
        gap = evaluation.gap_recovered(task, metric)
        return f"{gap.value:.2f} \\[{gap.low:.2f}, {gap.high:.2f}]"
    return "no gap"
