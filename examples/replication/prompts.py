"""Does it pay to give members prompts of their own? The embedded family, asked in one form and in two.

    python examples/replication/prompts.py            # about a minute on 2 CPU cores

The tuned member knows the chat template; base and reference have read questions too, and plain sentences. Writes `prompts.json` beside
this file and prints a table.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_eft import EFTForCausalLM, tiny
from hf_eft.programs.report import score_table
from hf_eft.prompts import member_inputs

_BATCH = 24


def plain(messages: Any) -> str:
    """The question alone."""
    return messages[-1]["content"]


def few_shot(messages: Any) -> str:
    """The question behind two others with short answers, about people of whom fine-tuning knew nothing either."""
    shown = [q for q in tiny.questions() if q.text != messages[-1]["content"]][:2]
    return "\n".join(f"{q.prompt} {q.answer}." for q in shown) + f"\nQuestion: {messages[-1]['content']}\nAnswer:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    questions = random.Random(1).sample(tiny.questions()[2:], args.questions)  # without those that are shown
    bare = tokenizer.__class__.from_pretrained(tiny.path("base"))
    bare.chat_template = None

    def ask(others: Any, form: Callable[[Any], str], tuned_tokenizer: Any = tokenizer) -> list[str]:
        """Answers, the tuned member's prompt made by its template, the others' by `form`."""
        replies: list[str] = []
        for start in range(0, len(questions), _BATCH):
            conversations = [[{"role": "user", "content": q.text}] for q in questions[start : start + _BATCH]]
            made = member_inputs(conversations, {"base": others, "tuned": tuned_tokenizer, "reference": others}, plain=form)
            inputs = made.pop("base")
            ids = model.generate(**inputs, member_inputs=made, max_new_tokens=24, do_sample=False)
            replies += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return replies

    answers = {
        "chat template for all": ask(tokenizer, plain),
        "chat template for tuned, question alone for the others": ask(bare, plain),
        "chat template for tuned, few-shot for the others": ask(bare, few_shot),
        "question alone for all": ask(bare, plain, bare),
        "few-shot for all": ask(bare, few_shot, bare),
    }
    Console(width=140).print(score_table(questions, answers))
    scores = {
        name: {
            "facts": round(sum(q.is_right(r) for q, r in zip(questions, replies, strict=True)) / len(questions), 3),
            "style": round(sum(q.is_in_style(r) for q, r in zip(questions, replies, strict=True)) / len(questions), 3),
        }
        for name, replies in answers.items()
    }
    results = {
        "command": "python examples/replication/prompts.py", "date": date.today().isoformat(), "questions": len(questions),
        "scores": scores,
    }  # fmt: skip
    args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
