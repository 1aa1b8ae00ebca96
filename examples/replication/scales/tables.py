"""
Tables and pictures out of the results of `run.py`.

    python examples/replication/scales/tables.py results.json

Means over seeds with 95 % intervals (Student's t over seeds; with one seed there are none). Writes `<name>-matrix.png`,
`<name>-steering.png`, `<name>-strengths.png` with their data beside them, and `<name>.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hf_eft import plots

SIZES = ("small", "medium", "large")
METRICS = ("factuality", "helpfulness")
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval; NaN where there is one seed, or values that are not there."""
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return math.nan, math.nan
    if len(kept) == 1:
        return kept[0], math.nan
    return statistics.mean(kept), _T[len(kept) - 1] * statistics.stdev(kept) / math.sqrt(len(kept))


def shown(values: Sequence[float]) -> str:
    mean, half = interval(values)
    return "-" if math.isnan(mean) else f"{mean:.2f}" if math.isnan(half) else f"{mean:.2f} ± {half:.2f}"


def over_seeds(results: Any, *path: str) -> list[float]:
    """One number of every seed, found under these keys."""
    values = []
    for seed in results["seeds"]:
        for key in path:
            seed = seed[key]
        values.append(seed)
    return values


def recovered(seed: Any, temperature: str, metric: str, base: str, delta: str, low: str, high: str) -> float:
    """The paper's normalisation: 0 the tuned model of the size `low`, 1 that of `high`. NaN where these differ by less than .02."""
    at = seed["matrix"][temperature]
    start, end = at[f"{low}/{low}"][metric], at[f"{high}/{high}"][metric]
    return (at[f"{base}/{delta}"][metric] - start) / (end - start) if abs(end - start) >= 0.02 else math.nan


def matrix_table(results: Any, temperature: str) -> list[str]:
    lines = [f"| pre-training \\ fine-tuning | {' | '.join(SIZES)} | not tuned |", "|---|" + "---|" * (len(SIZES) + 1)]
    for base in SIZES:
        cells = []
        for delta in (*SIZES, "none"):
            values = [shown(over_seeds(results, "matrix", temperature, f"{base}/{delta}", m)) for m in METRICS]
            cells.append(" · ".join(values))
        lines.append(f"| **{base}** | {' | '.join(cells)} |")
    return lines


def claims(results: Any) -> list[str]:
    """Up-scaling against down-scaling, by pair of scales and temperature."""
    lines = [
        "| pair | temperature | up-scaling: factuality | helpfulness | down-scaling: factuality | helpfulness |",
        "|---|---|---|---|---|---|",
    ]
    for low, high in (("small", "medium"), ("medium", "large"), ("small", "large")):
        for temperature in results["seeds"][0]["matrix"]:
            cells = [
                shown([recovered(seed, temperature, m, base, delta, low, high) for seed in results["seeds"]])
                for base, delta in ((high, low), (low, high))
                for m in METRICS
            ]
            lines.append(f"| {low} to {high} | {temperature.removeprefix('temperature ')} | {' | '.join(cells)} |")
    return lines


def named_table(results: Any, part: str, metrics: Sequence[str]) -> list[str]:
    lines = [f"| | {' | '.join(metrics)} |", "|---|" + "---|" * len(metrics)]
    for name in results["seeds"][0][part]:
        cells = [shown(over_seeds(results, part, name, m)) for m in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def losing_table(results: Any) -> list[str]:
    """When the combination is less helpful than its tuned member on the test people, and whether the validation people said so."""
    counts = {(seen, true): 0 for seen in (True, False) for true in (True, False)}
    for seed in results["seeds"]:
        for row in seed["losing"]:
            counts[row["validation"] < 0, row["test"] < 0] += 1
    return [
        "| | loses on test people | does not |", "|---|---|---|",
        f"| validation people said that it loses | {counts[True, True]} | {counts[True, False]} |",
        f"| they did not | {counts[False, True]} | {counts[False, False]} |",
    ]  # fmt: skip


def matrix_picture(results: Any, path: Path) -> None:
    temperature = "temperature 0"
    data: dict[str, Any] = {m: [[0.0] * len(SIZES) for _ in SIZES] for m in METRICS}
    with plots.style():
        figure = Figure(figsize=(7.2, 3.2))
        for panel, metric in zip(figure.subplots(1, 2), METRICS, strict=True):
            for i, base in enumerate(SIZES):
                for j, delta in enumerate(SIZES):
                    values = over_seeds(results, "matrix", temperature, f"{base}/{delta}", metric)
                    data[metric][i][j] = interval(values)[0]
                    light = data[metric][i][j] > 0.5
                    panel.text(
                        j,
                        i,
                        shown(values).replace(" ± ", "\n± "),
                        ha="center",
                        va="center",
                        color="black" if light else "white",
                    )
            panel.imshow(data[metric], vmin=0, vmax=1, cmap="cividis")
            panel.set(title=metric, xlabel="fine-tuning at", ylabel="pre-training at")
            panel.set_xticks(range(len(SIZES)), SIZES)
            panel.set_yticks(range(len(SIZES)), SIZES)
            panel.grid(False)
        plots.save(figure, path, data)


def steering_picture(results: Any, path: Path) -> None:
    data: dict[str, Any] = {}
    with plots.style():
        figure = Figure(figsize=(4.6, 3.6))
        axes = figure.subplots()
        for name, colour, marker in (("small", "tuned", "o"), ("up-scaled", "combined", "s"), ("large", "tuned_large", "^")):
            points = [
                [interval(over_seeds(results, "steering", name, w, m))[0] for m in ("harmlessness", "helpfulness")]
                for w in results["seeds"][0]["steering"][name]
            ]  # fmt: skip
            data[name] = dict(zip(results["seeds"][0]["steering"][name], points, strict=True))
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=plots.colour(colour), marker=marker, label=name)
            axes.plot([x[0], x[-1]], [y[0], y[-1]], color=plots.colour(colour), linestyle=":", linewidth=1)
        axes.set(xlabel="harmlessness", ylabel="helpfulness", title="the line from helpful to harmless; dotted: its chord")
        axes.legend()
        plots.save(figure, path, data)


def strengths_picture(results: Any, path: Path) -> None:
    names = list(results["seeds"][0]["strengths"])
    data = {m: [interval(over_seeds(results, "strengths", n, m)) for n in names] for m in METRICS}
    with plots.style():
        figure = Figure(figsize=(6.4, 0.3 * len(names) + 1.2))
        axes = figure.subplots()
        for offset, metric, colour in ((-0.18, METRICS[0], "base"), (0.18, METRICS[1], "tuned")):
            means, halves = zip(*data[metric], strict=True)
            places = [i + offset for i in range(len(names))]
            errors = [0 if math.isnan(half) else half for half in halves]
            axes.barh(places, means, 0.34, xerr=errors, color=plots.colour(colour), label=metric)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.02), title="small delta on the large base")
        axes.legend(loc="lower right")
        plots.save(figure, path, {"settings": names, **data})


def page(results: Any) -> str:
    effort = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in results["effort"].items())
    seconds = sum(seed["seconds"] for seed in results["seeds"])
    parts = {
        "Every pair of scales, greedy: factuality · helpfulness": matrix_table(results, "temperature 0"),
        "The same at temperature 1": matrix_table(results, "temperature 1"),
        "Share of the gap recovered (0: the tuned model of the smaller size, 1: of the larger)": claims(results),
        "Strength, amplification, truncation": named_table(results, "strengths", (*METRICS, "harmlessness")),
        "Drafts of the small tuned model for the large combination": named_table(
            results, "drafts", ("agreement", "tokens a round")
        ),
        "When up-scaling loses helpfulness to its tuned member": losing_table(results),
    }
    run = f"`{results['command']}`, {results['machine']}, {results['date']}"
    head = f"{run}; {len(results['seeds'])} seed(s), {effort}; {seconds} s of one core."
    return "\n\n".join([head, *(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("results", type=Path)
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    stem = args.results.with_suffix("")
    matrix_picture(results, Path(f"{stem}-matrix.png"))
    steering_picture(results, Path(f"{stem}-steering.png"))
    strengths_picture(results, Path(f"{stem}-strengths.png"))
    Path(f"{stem}.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
