"""Truncation, amplification and strength on the embedded family: facts and style for every rule, p, beta and alpha.

    python examples/replication/truncation.py            # about 5 minutes on 2 CPU cores

Every setting answers the same held-out questions, greedily. Writes `truncation.json` and `truncation.png` beside this file.
"""

from __future__ import annotations

import argparse
import random
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.progress import track

from hf_eft import Combination, EFTForCausalLM, Truncation, tiny
from hf_eft.evaluation import plots
from hf_eft.files import as_json
from hf_eft.programs.demo import ask

RULES = ("keep", "drop", "base", "plausible")
LEVELS = (0.95, 0.9, 0.8)
STRENGTHS: list[dict[str, float]] = [
    *({"beta": beta} for beta in (1.0, 1.2, 1.5)),
    *({"alpha": alpha} for alpha in (0.0, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0)),
]


def truncations() -> dict[str, Truncation | None]:
    """None, and every rule at every p; for `"plausible"`, whose p is a share of the maximum and not a mass, at 1 - p."""
    rules: dict[str, Truncation | None] = {"none": None}
    for rule in RULES:
        for p in LEVELS:
            share = round(1 - p, 2) if rule == "plausible" else p
            rules[f"{rule} {share:g}"] = Truncation(rule, share)
    return rules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    questions = random.Random(0).sample(tiny.questions(), args.questions)

    def score(system: Any) -> dict[str, float]:
        replies = ask(system, tokenizer, questions)
        facts = sum(q.is_right(reply) for q, reply in zip(questions, replies, strict=True))
        style = sum(q.is_in_style(reply) for q, reply in zip(questions, replies, strict=True))
        return {"facts": round(facts / len(questions), 3), "style": round(style / len(questions), 3)}

    scores: dict[str, Any] = {"small tuned": score(tuned), "large base": score(base)}
    settings = [(strength, name, rule) for strength in STRENGTHS for name, rule in truncations().items()]
    for strength, name, rule in track(settings, description="Asking"):
        model.combination = Combination.emulate(**strength, truncation=rule)
        label = ", ".join(f"{key} {value:g}" for key, value in strength.items())
        scores.setdefault(label, {})[name] = score(model)
    results = {
        "command": "python examples/replication/truncation.py", "date": date.today().isoformat(), "questions": args.questions,
        "scores": scores,
    }  # fmt: skip
    args.output.write_text(as_json(results))  # what was measured is kept, whatever becomes of the picture
    draw(results, args.output.with_suffix(".png"))


def draw(results: dict[str, Any], path: Path) -> None:
    """Two heat-maps, facts and style: a row for each strength, a column for each truncation."""
    columns = list(truncations())
    rows = [label for label, found in results["scores"].items() if "facts" not in found]
    with plots.style():
        figure = Figure(figsize=(11, 9))
        for panel, what in zip(figure.subplots(2, 1), ("facts", "style"), strict=True):
            values = [[results["scores"][row][column][what] for column in columns] for row in rows]
            panel.imshow(values, vmin=0, vmax=1, aspect="auto")
            panel.grid(False)
            for i, line in enumerate(values):
                for j, value in enumerate(line):
                    panel.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color="white" if value < 0.6 else "black")
            panel.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
            panel.set_yticks(range(len(rows)), rows)
            alone = {name: results["scores"][name][what] for name in ("small tuned", "large base")}
            told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in alone.items())
            title = "Facts right" if what == "facts" else "In the tuned style"
            panel.set_title(f"{title}, % of {results['questions']} questions ({told})")
        plots.save(figure, path, results)


if __name__ == "__main__":
    main()
