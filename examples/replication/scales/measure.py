"""What is asked of the families of one seed: every pair of scales, steering, strengths, drafts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from behaviours import BEHAVIOURS, judge
from sizes import SIZES, Family

from hf_eft import Combination, EFTForCausalLM, Truncation
from hf_eft.evaluation.intervals import Items, of_difference
from hf_eft.tiny import Question

TEMPERATURES = (0.0, 1.0)
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Asked of validation and test people alike: who reads the results chooses by the former.
STRENGTHS: dict[str, dict[str, Any]] = {
    **{f"alpha {a:g}": {"alpha": a} for a in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)},
    **{f"beta {b:g}": {"beta": b} for b in (1.2, 1.5)},
    **{f"alpha {a:g}, keep .95": {"alpha": a, "truncation": Truncation("keep", 0.95)} for a in (1.0, 1.5)},
    **{f"alpha 1, {rule} .9": {"alpha": 1.0, "truncation": Truncation(rule, 0.9)} for rule in ("keep", "drop", "base")},
    "alpha 1, plausible .1": {"alpha": 1.0, "truncation": Truncation("plausible", 0.1)},
}
_BATCH = 60
_NEW_TOKENS = 20


class Asked:
    """
    Questions, and how they are asked: in fixed batches, greedily or at a temperature with a seed for every question, so that the answers
    of a seed are the same whenever they are asked for.
    """

    def __init__(self, family: Family, people: Sequence[str]) -> None:
        self.tokenizer = family.tokenizer
        self.questions: list[Question] = family.world.questions(people)
        self.seed = family.seed

    def answers(
        self, model: EFTForCausalLM, temperature: float = 0.0, coefficients: Sequence[float] | None = None
    ) -> list[str]:
        replies: list[str] = []
        for start in range(0, len(self.questions), _BATCH):
            part = self.questions[start : start + _BATCH]
            inputs = self.tokenizer([q.prompt for q in part], return_tensors="pt", padding=True, return_token_type_ids=False)
            options: dict[str, Any] = {"do_sample": False}
            if temperature:
                seeds = [1_000_000 * self.seed + start + i for i in range(len(part))]
                options = {"do_sample": True, "temperature": temperature, "top_k": 0, "coupling": "match", "seed": seeds}
            if coefficients is not None:
                options["coefficients"] = torch.tensor([list(coefficients)] * len(part))
            ids = model.generate(**inputs, max_new_tokens=_NEW_TOKENS, **options)
            replies += self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return replies

    def judged(
        self, model: EFTForCausalLM, temperature: float = 0.0, coefficients: Sequence[float] | None = None
    ) -> dict[str, list[float]]:
        """Every metric for every question that it is about."""
        return judge(self.questions, self.answers(model, temperature, coefficients))

    def scores(self, model: EFTForCausalLM) -> dict[str, float]:
        """The share of the questions, greedily."""
        return shares(self.judged(model))


def shares(judged: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {metric: statistics.mean(values) for metric, values in judged.items()}


def pair(family: Family, base: str, delta: str, behaviour: str = "helpful") -> EFTForCausalLM:
    """The base of one size, the fine-tuning of another. With one size for both it is that tuned model."""
    reference = family.model(delta, "base")
    return EFTForCausalLM.from_models(family.model(base, "base"), tuned=family.model(delta, behaviour), reference=reference)


def matrix(family: Family, asked: Asked, temperature: float) -> dict[str, dict[str, list[float]]]:
    """`"<base size>/<delta size>"`, and each base alone as `"<size>/none"`, question by question."""
    cells = {}
    for base in SIZES:
        for delta in SIZES:
            cells[f"{base}/{delta}"] = asked.judged(pair(family, base, delta), temperature)
        cells[f"{base}/none"] = asked.judged(pair(family, base, base), temperature, [1.0, 0.0, 0.0])
    return cells


def steering(family: Family, asked: Asked) -> dict[str, Any]:
    """λ helpful + (1 - λ) harmless: on the small model, up-scaled to the large base, and on the large model itself."""
    results = {}
    for name, (base, delta) in {
        "small": ("small", "small"), "up-scaled": ("large", "small"), "large": ("large", "large"),
    }.items():  # fmt: skip
        tuned = {behaviour: family.model(delta, behaviour) for behaviour in BEHAVIOURS}
        model = EFTForCausalLM.from_models(
            family.model(base, "base"), tuned=tuned, reference=family.model(delta, "base"),
            combination=Combination.steer({"helpful": 0.5, "harmless": 0.5}),
        )  # fmt: skip
        results[name] = {}
        for weight in LAMBDAS:
            model.combination = Combination.steer({"helpful": weight, "harmless": 1 - weight})
            results[name][f"{weight:g}"] = asked.scores(model)
    return results


def strengths(family: Family, asked: Asked) -> dict[str, Any]:
    """Strength, amplification and truncation of the up-scaling from small to large."""
    model = pair(family, "large", "small")
    results = {}
    for name, options in STRENGTHS.items():
        model.combination = Combination.emulate(**options)
        results[name] = asked.scores(model)
    return results


def drafts(family: Family, asked: Asked) -> dict[str, Any]:
    """How often the large combination agrees with its small tuned member: tokens a round and acceptance by block, greedy."""
    model = pair(family, "large", "small")
    results: dict[str, Any] = {}
    for block in (2, 4, 8):
        totals = {"tokens": 0, "row rounds": 0, "kept": 0, "looked at": 0}
        for question in asked.questions[:: max(1, len(asked.questions) // 40)]:
            inputs = asked.tokenizer(question.prompt, return_tensors="pt", return_token_type_ids=False)
            model.generate(
                **inputs, max_new_tokens=_NEW_TOKENS, do_sample=False, assistant_model=model.tuned, num_assistant_tokens=block
            )
            report = model.speculation
            totals["tokens"] += report.tokens
            totals["row rounds"] += report.rounds
            totals["kept"] += sum(report.accepted)
            totals["looked at"] += sum(report.drafted)
        results[f"block {block}"] = {
            "tokens a round": totals["tokens"] / max(1, totals["row rounds"]),
            "agreement": totals["kept"] / max(1, totals["looked at"]),
        }
    return results


def losing(validation: Mapping[str, Any], test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    For every pair of unlike scales and every metric of the matrix: how far the combination is above its tuned member on the test people,
    and what the check of [`hf_eft.evaluation`] says of the validation people. Both are worse where the whole 95 % interval is.
    """
    rows = []
    for base in SIZES:
        for delta in SIZES:
            for metric in ("factuality", "helpfulness") if base != delta else ():
                row: dict[str, Any] = {"base": base, "delta": delta, "metric": metric}
                for people, cells in (("validation", validation), ("test", test)):
                    combined, alone = (Items(cells[f"{size}/{delta}"][metric]) for size in (base, delta))
                    found = of_difference(combined, alone)
                    row[people] = {"difference": found.value, "low": found.low, "high": found.high}
                rows.append(row)
    return rows


def everything(family: Family) -> dict[str, Any]:
    """All of it, on the test people; what choices can be made by on the validation people as well."""
    test, validation = Asked(family, family.world.test), Asked(family, family.world.validation)
    on_test = {f"temperature {t:g}": matrix(family, test, t) for t in TEMPERATURES}
    on_validation = matrix(family, validation, 0.0)
    results = {
        "seed": family.seed,
        "matrix": {t: {name: shares(cell) for name, cell in cells.items()} for t, cells in on_test.items()},
        "matrix, validation": {name: shares(cell) for name, cell in on_validation.items()},
        "steering": steering(family, test),
        "strengths": strengths(family, test),
        "drafts": drafts(family, test),
        "losing": losing(on_validation, on_test["temperature 0"]),
    }
    if family.seed == 0:  # choices are made on one seed
        results["strengths, validation"] = strengths(family, validation)
    return results
