"""The demonstration: what the small tuned model, the large base and the combination answer, and what the delta changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress

from .. import tiny
from ..analysis import analyse
from ..modeling_eft import EFTForCausalLM
from .report import analysis_table, answers_table, score_table

_BATCH = 24
_MAX_NEW_TOKENS = 24


def ask(model: Any, tokenizer: Any, questions: Sequence[tiny.Question], done: Any = None) -> list[str]:
    """Greedy answers, in batches; `done` is called with how many are."""
    replies: list[str] = []
    for start in range(0, len(questions), _BATCH):
        prompts = [question.prompt for question in questions[start : start + _BATCH]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False).to(model.device)
        ids = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        replies += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        if done is not None:
            done(len(prompts))
    return replies


def run_demo(console: Console, shown: int, asked: int) -> None:
    """Print the tables of the demonstration."""
    base, tuned, reference, tokenizer = tiny.load()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    _, delta, _, _ = tiny.load_through()
    through = EFTForCausalLM.from_models(base, tuned=delta, reference=reference)
    questions = random.Random(0).sample(tiny.questions(), asked)
    systems = {"small tuned": tuned, "large base": base, "combination": model, "learnt through the large": through}
    answers: dict[str, list[str]] = {}
    with Progress(console=console, transient=True) as progress:
        for name, system in systems.items():
            task = progress.add_task(f"Asking the {name}", total=len(questions))
            answers[name] = ask(system, tokenizer, questions, lambda n, task=task: progress.advance(task, n))

    console.print(answers_table(questions[:shown], {name: replies[:shown] for name, replies in answers.items()}))
    console.print(score_table(questions, answers))

    chosen = next(
        (q for q, r in zip(questions, answers["combination"], strict=True) if q.is_right(r) and q.is_in_style(r)), questions[0]
    )
    analysis = analyse(model, tokenizer, chosen.prompt, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
    answer = analysis.continuation.removesuffix(tokenizer.eos_token)
    console.print(f"\n[bold]{chosen.text}[/bold]  {answer.strip()}\n")
    console.print(analysis_table(analysis, console.width))
    console.print(
        "The knowledge is the large base's, the manner the small tuned model's. The combination can lose to either: "
        "compare it with `tuned` alone and `base` alone on your task. Learnt through the large: the same small model, trained with the "
        "large one in the loop (`hf-eft tune`); alone it is no model.",
        style="dim",
    )
