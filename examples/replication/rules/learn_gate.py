"""
Train a gate on what answers are worth.

People are asked at several constant strengths, every answer is scored, and the gate learns to make the answers that are better than the
others to the same question likely under the combination. The models stay as they are: their log-probs are worked out once, and what is left
is a network of a few hundred weights. Minutes for everything, seconds for the gate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from asking import Group, judge

from hf_eft import Combination, EFTForCausalLM, Gate

STEPS, RATE, TOKENS = 400, 0.02, 2048
SAMPLES = 2  # at temperature 1, beside the greedy answer
_BATCH = 120
FORMS = {"α": (0.25, 0.5, 1.0, 1.5), "β": (0.0, 0.25, 0.5, 1.0)}  # strengths at which answers are sampled
_START = {"α": (1.0, 2.0), "β": (0.5, 1.0)}  # what an untrained gate says, and the most that one can


def recipe(form: str, strength: Any, unit: float) -> Combination:
    return Combination.emulate(alpha=unit * strength) if form == "α" else Combination.emulate(beta=strength)


def scored(group: Group, model: EFTForCausalLM, form: str, unit: float, refuses: bool) -> dict[str, float]:
    """Questions with an answer, as texts, and how much better it is than the others to the question, for those that are."""
    answers: dict[int, list[str]] = defaultdict(list)
    for number, strength in enumerate(FORMS[form]):
        for sample in range(SAMPLES + 1):
            said = group.answers(model, recipe(form, strength, unit), float(sample > 0), SAMPLES * number + sample)
            for i, reply in enumerate(said):
                answers[i].append(reply)
    better: dict[str, float] = defaultdict(float)
    for i, replies in answers.items():
        question = group.questions[i]
        values = [worth(judge(group.world, [question], [reply]), refuses) for reply in replies]
        mean = sum(values) / len(values)
        for reply, value in zip(replies, values, strict=True):
            if value > mean:
                better[f"{question.prompt}\0{reply}"] += value - mean
    return better


def worth(judged: Mapping[str, Sequence[float]], refuses: bool) -> float:
    """Facts and form of one answer, and what is refused by a model that has to."""
    wanted = {"factuality": 1.0, "helpfulness": 1.0} | ({"harmlessness": 1.0, "overrefusal": -1.0} if refuses else {})
    return sum(sign * value for metric, sign in wanted.items() for value in judged.get(metric, ()))


Tokens = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]


@torch.no_grad()
def tokens_of(better: Mapping[str, float], tokenizer: Any, models: Mapping[str, Any]) -> Tokens:
    """Every token of the answers: the members' log-probs, `(tokens, vocab)` each, which token it is, and what its answer is worth."""
    tokenizer.padding_side = "right"
    texts = sorted(better)
    logs: dict[str, list[torch.Tensor]] = {name: [] for name in models}
    labels, weights = [], []
    for start in range(0, len(texts), _BATCH):
        pairs = [text.split("\0", 1) for text in texts[start : start + _BATCH]]
        inputs = tokenizer(
            [prompt + reply + tokenizer.eos_token for prompt, reply in pairs], return_tensors="pt", padding=True,
            return_token_type_ids=False,
        )  # fmt: skip
        begins = torch.tensor([len(tokenizer(prompt)["input_ids"]) for prompt, _ in pairs])[:, None]
        places = torch.arange(inputs["input_ids"].shape[1] - 1)
        of_answer = (places >= begins - 1) & (inputs["attention_mask"][:, 1:] == 1)  # (answers, tokens)
        for name, model in models.items():
            logs[name].append(model(**inputs).logits[:, :-1][of_answer].log_softmax(-1))
        labels.append(inputs["input_ids"][:, 1:][of_answer])
        worths = torch.tensor([better[text] for text in texts[start : start + _BATCH]])
        weights.append(worths[:, None].expand_as(of_answer)[of_answer])
    tokenizer.padding_side = "left"
    return {name: torch.cat(parts) for name, parts in logs.items()}, torch.cat(labels), torch.cat(weights)


def learn(tokens: Tokens, form: str, unit: float, steps: int = STEPS, seed: int = 0) -> tuple[Gate, list[float]]:
    """The gate, and the weighted loss of the combination every 100 steps and at the end."""
    logs, labels, weights = tokens
    start, most = _START[form]
    gate = Gate.start(alpha=start, most=most, seed=seed)
    features = gate.features({name: log_p[None] for name, log_p in logs.items()})[0]  # (tokens, features)
    fixed, delta = (
        (logs["base"], unit * (logs["tuned"] - logs["reference"]))
        if form == "α"
        else (logs["tuned"], logs["base"] - logs["reference"])
    )
    learnt = [value.requires_grad_(True) for value in gate.weights.values()]
    optimizer = torch.optim.Adam(learnt, lr=RATE)
    generator = torch.Generator().manual_seed(seed)

    def loss(rows: Any) -> torch.Tensor:
        strength = gate.of_features(features[rows])[:, None]
        log_p = (fixed[rows] + strength * delta[rows]).log_softmax(-1)
        said = log_p.gather(-1, labels[rows, None])[:, 0]
        return -(weights[rows] * said).sum() / weights[rows].sum()

    told = []
    for step in range(steps + 1):
        if step % 100 == 0 or step == steps:
            with torch.no_grad():
                told.append(round(loss(slice(None)).item(), 4))
        loss(torch.randint(len(labels), (min(TOKENS, len(labels)),), generator=generator)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Gate({name: value.detach() for name, value in gate.weights.items()}, gate.members, gate.most), told


def train(
    group: Group, model: EFTForCausalLM, models: Mapping[str, Any], form: str, unit: float, refuses: bool
) -> tuple[Gate, dict[str, Any]]:
    """A gate for a delta on a base, and what is to be told of its training."""
    better = scored(group, model, form, unit, refuses)
    tokens = tokens_of(better, group.tokenizer, models)
    gate, told = learn(tokens, form, unit)
    weights = sum(value.numel() for value in gate.weights.values())
    return gate, {"answers": len(better), "tokens": len(tokens[1]), "weights": weights, "loss": told}
