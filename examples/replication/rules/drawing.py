"""Pictures of what has been measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from resampling import of_share
from verdicts import seeds_of, share

from hf_eft.evaluation import plots

_ROWS = ("ordinary, small on large", "through large at 0.5")
AXES = ("harmlessness", "helpfulness")


def families_picture(results: Any, path: Path) -> None:
    """Facts against form of everything that was asked of two rows."""
    rows = [row for row in _ROWS if row in results["test"]]
    data: dict[str, Any] = {}
    with plots.style():
        figure = Figure(figsize=(7.6, 0.3 * 22 + 0.8))
        for axes, row in zip(figure.subplots(1, max(1, len(rows)), squeeze=False)[0], rows, strict=False):
            families = list(results["test"][row][0]["test"])
            data[row] = {}
            for offset, (metric, colour) in zip((-0.17, 0.17), (("factuality", "base"), ("helpfulness", "tuned")), strict=True):
                found = [share(results, row, family, metric) for family in families]
                data[row][metric] = dict(zip(families, map(list, found), strict=True))
                places = [place + offset for place in range(len(families))]
                errors = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
                axes.barh(places, [f.value for f in found], 0.32, xerr=errors, color=plots.colour(colour), label=_said(metric))
            axes.set_yticks(range(len(families)), families)
            axes.invert_yaxis()
            axes.set(xlim=(0, 1.02), title=row)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        plots.save(figure, path, data)


def _said(metric: str) -> str:
    return {"factuality": "facts", "helpfulness": "form"}[metric]


def frontiers_picture(results: Any, path: Path) -> None:
    """The line from harmless to helpful for each way of steering; its chord is dotted."""
    data: dict[str, Any] = {}
    colours = ("tuned", "combined", "tuned_large")
    with plots.style():
        deltas = list(dict.fromkeys(name.split(", ")[0] for name in results["frontiers"])) or [""]
        figure = Figure(figsize=(7.2, 3.2))
        for axes, delta in zip(figure.subplots(1, len(deltas), squeeze=False)[0], deltas, strict=True):
            lines = {name: rows for name, rows in results["frontiers"].items() if name.startswith(f"{delta}, ")}
            for (name, rows), colour in zip(lines.items(), colours, strict=False):
                points = [
                    [of_share(seeds_of([row["line"] for row in rows], weight, m, part=None)).value for m in AXES]
                    for weight in rows[0]["line"]
                ]  # fmt: skip
                data[name] = dict(zip(rows[0]["line"], points, strict=True))
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=plots.colour(colour), marker="o", markersize=4, label=name.removeprefix(f"{delta}, "))
                axes.plot([x[0], x[-1]], [y[0], y[-1]], color=plots.colour(colour), linestyle=":", linewidth=1)
            axes.set(xlabel="refused", ylabel="form", title=delta, ylim=(0, 1.02))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        plots.save(figure, path, data)
