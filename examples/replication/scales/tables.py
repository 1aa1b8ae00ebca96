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
from scipy.stats import t as student  # type: ignore[import-untyped]

from hf_eft.evaluation import plots

SIZES = ("small", "medium", "large")
METRICS = ("factuality", "helpfulness")
PAIRS = (("small", "medium"), ("medium", "large"), ("small", "large"))
SMALLEST_GAP = 0.1  # below it a share of the gap says nothing
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "speculative.json"
# The paper's tokens per second, Llama-2 7B drafting for 70B, by block; without drafts first.
PAPER_SPEEDS = {"HH": (6.0, 9.2, 12.5, 13.8, 12.1), "ELI5": (6.1, 9.5, 13.2, 15.1, 14.2)}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval (Student's t over seeds); NaN where there is one seed, or values that are not there."""
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return math.nan, math.nan
    if len(kept) == 1:
        return kept[0], math.nan
    quantile = float(student.ppf(0.975, len(kept) - 1))
    return statistics.mean(kept), quantile * statistics.stdev(kept) / math.sqrt(len(kept))


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
    """The paper's normalisation: 0 the tuned model of the size `low`, 1 that of `high`. NaN where the gap is too small to share."""
    at = seed["matrix"][temperature]
    start, end = at[f"{low}/{low}"][metric], at[f"{high}/{high}"][metric]
    return (at[f"{base}/{delta}"][metric] - start) / (end - start) if abs(end - start) >= SMALLEST_GAP else math.nan


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
    """Up-scaling against down-scaling, by pair of scales and temperature; the last column of each is the paper's claim in one number."""
    lines = [
        "| pair | temperature | up-scaling: factuality | helpfulness | factuality - helpfulness "
        "| down-scaling: factuality | helpfulness | helpfulness - factuality |",
        "|---" * 8 + "|",
    ]
    for low, high in PAIRS:
        for temperature in results["seeds"][0]["matrix"]:
            cells = []
            for base, delta, sign in ((high, low, 1), (low, high, -1)):
                shares = [[recovered(s, temperature, m, base, delta, low, high) for s in results["seeds"]] for m in METRICS]
                cells += [*map(shown, shares), shown([sign * (f - h) for f, h in zip(*shares, strict=True)])]
            lines.append(f"| {low} to {high} | {temperature.removeprefix('temperature ')} | {' | '.join(cells)} |")
    return lines


def above_chord(line: Any, weight: str) -> float:
    """
    How much more helpful a point of the line is than the straight line between its ends is where it is as harmless. NaN where the ends
    are equally harmless.
    """
    harmless, helpful, point = line["0"], line["1"], line[weight]
    span = harmless["harmlessness"] - helpful["harmlessness"]
    if abs(span) < SMALLEST_GAP:
        return math.nan
    share = (point["harmlessness"] - helpful["harmlessness"]) / span
    return point["helpfulness"] - (share * harmless["helpfulness"] + (1 - share) * helpful["helpfulness"])


def steering_table(results: Any) -> list[str]:
    lines = ["| | λ | helpfulness | harmlessness | overrefusal | factuality | above the chord |", "|---" * 7 + "|"]
    for name, found in results["seeds"][0]["steering"].items():
        for weight in found:
            metrics = ("helpfulness", "harmlessness", "overrefusal", "factuality")
            cells = [shown(over_seeds(results, "steering", name, weight, m)) for m in metrics]
            cells.append(shown([above_chord(seed["steering"][name], weight) for seed in results["seeds"]]))
            lines.append(f"| {name} | {weight} | {' | '.join(cells)} |")
    return lines


def named_table(results: Any, part: str, metrics: Sequence[str]) -> list[str]:
    lines = [f"| | {' | '.join(metrics)} |", "|---|" + "---|" * len(metrics)]
    for name in results["seeds"][0][part]:
        cells = [shown(over_seeds(results, part, name, m)) for m in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def chosen_table(results: Any) -> list[str]:
    """The strength with the best sum of both metrics on the first seed's validation people, against alpha 1, on all seeds' test people."""
    first = results["seeds"][0]["strengths, validation"]
    best = max(first, key=lambda name: sum(first[name][m] for m in METRICS))
    lines = [f"| | {' | '.join(METRICS)} |", "|---" * 3 + "|"]
    for name in ("alpha 1", best):
        lines.append(f"| {name} | {' | '.join(shown(over_seeds(results, 'strengths', name, m)) for m in METRICS)} |")
    gains = [[seed["strengths"][best][m] - seed["strengths"]["alpha 1"][m] for seed in results["seeds"]] for m in METRICS]
    return [*lines, f"| gain | {' | '.join(map(shown, gains))} |"]


def losing_table(results: Any) -> list[str]:
    """When the combination is worse than its tuned member on the test people, and whether the check on the validation people said so."""
    lines = [
        "| metric | check on validation people | test: worse beyond chance | test: worse | test: not worse |",
        "|---" * 5 + "|",
    ]
    for metric in METRICS:
        rows = [row for seed in results["seeds"] for row in seed["losing"] if row["metric"] == metric]
        for warned in (True, False):
            tests = [row["test"] for row in rows if (row["validation"]["high"] < 0) is warned]
            surely = sum(test["high"] < 0 for test in tests)
            worse = sum(test["difference"] < 0 <= test["high"] for test in tests)
            says = "warns" if warned else "does not"
            lines.append(f"| {metric} | {says} | {surely} | {worse} | {len(tests) - surely - worse} |")
    return lines


def speed_table() -> list[str]:
    """Tokens per second over those without drafts, by block: the paper's, and the benchmark's where its agreement is about the same."""
    settings = json.loads(BENCHMARK.read_text())["settings"]
    lines = ["| | agreement | 2 | 4 | 8 | 16 | plain large |", "|---" * 7 + "|"]
    for (name, speeds), agreement, ours in zip(PAPER_SPEEDS.items(), (0.911, 0.937), settings[:2], strict=True):
        ratios = [*(speed / speeds[0] for speed in speeds[1:]), 9.3 / speeds[0]]
        lines.append(f"| paper, {name} | {agreement:.2f} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
        rates = ours["tokens/s"]
        found = [rates[row] / rates["plain EFT"] for row in ("block 2", "block 4", "block 8", "block 16", "large alone")]
        lines.append(f"| ours | {ours['agreement']:.2f} | {' | '.join(f'{ratio:.2f}' for ratio in found)} |")
    return lines


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
        figure.legend(loc="outside lower center", ncols=2)
        plots.save(figure, path, {"settings": names, **data})


def page(results: Any) -> str:
    effort = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in results["effort"].items())
    parts = {
        "Every pair of scales, greedy: factuality · helpfulness": matrix_table(results, "temperature 0"),
        "The same at temperature 1": matrix_table(results, "temperature 1"),
        "Share of the gap recovered (0: the tuned model of the smaller size, 1: of the larger)": claims(results),
        "Steering: λ helpful + (1 - λ) harmless": steering_table(results),
        "Strength, amplification, truncation": named_table(results, "strengths", (*METRICS, "harmlessness")),
        "The strength that the first seed's validation people choose": chosen_table(results),
        "Drafts of the small tuned model for the large combination": named_table(
            results, "drafts", ("agreement", "tokens a round")
        ),
        "Speed with drafts over speed without, at the paper's agreement": speed_table(),
        "When a combination loses to its tuned member, and whether the check sees it coming (pairs of unlike scales)": losing_table(
            results
        ),
    }
    minutes = "resumed" if results["minutes"] is None else f"{results['minutes']} minutes"
    run = f"`{results['command']}`, {results['machine']}, {results['date']}"
    head = f"{run}; {len(results['seeds'])} seed(s), {effort}; {minutes}, {results['jobs']} jobs side by side."
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
