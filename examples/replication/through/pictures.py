"""Pictures of what has been measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from figures import chosen, ends, interval, over, share
from matplotlib.figure import Figure

from hf_eft.evaluation import plots

_ROWS = {
    "ordinary": "tuned",
    "through large at 0.25": "combined",
    "through large at 0.5": "combined",
    "ordinary, rate 4": "tuned",
    "through large at 0.25, rate 4": "combined",
    "ordinary, x4": "tuned",
    "through large at 0.25, x4": "combined",
    "through large at 0.5, x4": "combined",
    "through small at 0.5, x4": "base",
    "through medium at 0.5, x4": "base",
    "through small or medium at 0.5, x4": "base",
}
_STRENGTHS = ("0.125", "0.25", "0.5", "1")


def forms_picture(results: Any, path: Path) -> None:
    """The share of the form that is recovered, every seed a dot."""
    rows = {name: results["rows"][name] for name in _ROWS if results["rows"].get(name)}
    of = ends(results)
    data = {name: over(found, lambda row: share(chosen(row), of[row["seed"]])) for name, found in rows.items()}
    with plots.style():
        figure = Figure(figsize=(6.4, 0.34 * len(data) + 1.1))
        axes = figure.subplots()
        for place, (name, values) in enumerate(data.items()):
            mean, low, high = interval(values)
            colour = plots.colour(_ROWS[name])
            axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.4)
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=3)
            axes.plot(mean, place, "|", color=colour, markersize=14, markeredgewidth=2)
        axes.axvline(1, color=plots.colour("tuned_large"), linestyle=":", label="large tuned")
        axes.axvline(0, color=plots.colour("reference"), linestyle=":", label="small tuned alone")
        axes.set_yticks(range(len(data)), list(data))
        axes.invert_yaxis()
        axes.set_xlabel("share of the form recovered")
        figure.suptitle("small delta on the large base, strength of use chosen", x=0.6)
        figure.legend(loc="outside lower center", ncols=2)
        plots.save(figure, path, data)


def why_picture(results: Any, path: Path) -> None:
    """By strength of training: what the delta does to values and farewells, and what comes out."""
    rows = {a: results["rows"][f"through large at {a}"] for a in _STRENGTHS if results["rows"].get(f"through large at {a}")}
    trained = {a: [row["tokens of what was trained"] for row in found] for a, found in rows.items()}
    data: dict[str, Any] = {
        "strengths": [float(a) for a in rows],
        "form": [over(found, lambda row: chosen(row)["helpfulness"]) for found in rows.values()],
        "facts": [over(found, lambda row: chosen(row)["factuality"]) for found in rows.values()],
        "spread on values": [[t["value"]["spread"] for t in found] for found in trained.values()],
        "margin on farewells": [[t["farewell"]["margin"] for t in found] for found in trained.values()],
    }
    panels = {
        "what comes out": {"facts": "base", "form": "tuned"},
        "what the delta does (nats)": {"spread on values": "base", "margin on farewells": "tuned"},
    }
    with plots.style():
        figure = Figure(figsize=(7.2, 3.0))
        for axes, (title, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for name, colour in lines.items() if rows else ():
                means, lows, highs = zip(*map(interval, data[name]), strict=True)
                axes.plot(data["strengths"], means, color=plots.colour(colour), marker="o", label=name)
                axes.fill_between(data["strengths"], lows, highs, color=plots.colour(colour), alpha=0.2)
            axes.set_xscale("log", base=2)
            axes.set_xticks(data["strengths"], [f"{a:g}" for a in data["strengths"]])
            axes.set(title=title, xlabel="strength of training")
            if rows:
                axes.legend()
            axes.set_ylim(bottom=0)
        plots.save(figure, path, data)
