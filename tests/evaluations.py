"""Evaluations out of given scores, and questions as users have them."""

from __future__ import annotations

from typing import Any

from hf_eft import tiny
from hf_eft.evaluation import Evaluation, Score
from hf_eft.evaluation.intervals import Items


def made(systems: dict[str, list[float]], higher: bool = True, weights: Any = None, aggregation: str = "mean") -> Evaluation:
    items = {name: Items(scores, weights, aggregation) for name, scores in systems.items()}
    scores = {name: {"m": Score(float(each.aggregate()), len(each.scores), higher, each)} for name, each in items.items()}
    return Evaluation({"t": scores}, {}, {"seed": 0})


def records(metric: str) -> list[dict[str, Any]]:
    """Questions of the world, with answers as the metric takes them."""
    questions = tiny.questions(("pet",))[:4]
    statements = [f"{q.person} has a pet {q.answer}." for q in questions]
    if metric == "choice":
        wrong = [f"{q.person} has a pet {'dog' if q.answer != 'dog' else 'cat'}." for q in questions]
        return [
            {"prompt": q.prompt, "choices": [w, s], "gold": 1} for q, s, w in zip(questions, statements, wrong, strict=True)
        ]
    answers = {"contains": "{} has", "regex": r"pet \w+\.$", "exact_match": "nothing", "loglikelihood": "{} has"}
    return [{"prompt": q.prompt, "answer": answers.get(metric, "{}").format(q.person)} for q in questions]
