"""Score the embedded family on every held-out question: facts right and style, for each system.

python examples/replication/score_tiny.py            # about 20 seconds on 2 CPU cores
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from transformers import AutoModelForCausalLM

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.programs.demo import ask
from hf_eft.programs.report import score_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alpha", type=float, nargs="*", default=[0.5, 1.0], help="strengths of the delta")
    parser.add_argument(
        "--delta", type=Path, help="the folder of a delta that learnt through the base, as `hf-eft tune` writes it"
    )
    args = parser.parse_args()
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    questions = tiny.questions()
    systems = {"small reference": reference, "small tuned": tuned, "large base": base}
    answers = {name: ask(system, tokenizer, questions) for name, system in systems.items()}
    for alpha in args.alpha:
        model.combination = Combination.emulate(alpha=alpha)
        answers[f"combination, alpha {alpha:g}"] = ask(model, tokenizer, questions)
    delta = tiny.load_through().tuned if args.delta is None else AutoModelForCausalLM.from_pretrained(args.delta)
    through = EFTForCausalLM.from_models(base, tuned=delta, reference=reference)
    answers[f"learnt through the large, {through.combination}"] = ask(through, tokenizer, questions)
    Console().print(score_table(questions, answers))


if __name__ == "__main__":
    main()
