"""Score the embedded family on every held-out question: facts right and style, for each system.

python examples/replication/score_tiny.py            # about 20 seconds on 2 CPU cores
"""

from __future__ import annotations

import argparse

from rich.console import Console

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.programs.demo import ask
from hf_eft.programs.report import score_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alpha", type=float, nargs="*", default=[0.5, 1.0], help="strengths of the delta")
    args = parser.parse_args()
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    questions = tiny.questions()
    systems = {"small reference": reference, "small tuned": tuned, "large base": base}
    answers = {name: ask(system, tokenizer, questions) for name, system in systems.items()}
    for alpha in args.alpha:
        model.combination = Combination.emulate(alpha=alpha)
        answers[f"combination, alpha {alpha:g}"] = ask(model, tokenizer, questions)
    Console().print(score_table(questions, answers))


if __name__ == "__main__":
    main()
