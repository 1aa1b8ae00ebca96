"""Rules the slow way: each by its formula, in loops over tokens and in doubles, asked of whole texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import oracle
import thinking
import torch

from hf_eft import Combination, Confidence, Divergence, EFTForCausalLM, Entropy, Gate, KLConstrained, Rule

STEPS = 9
TOKENS = thinking.TOKENS
Said = Mapping[str, Sequence[float]]  # probabilities by member


def entropy(p: Sequence[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(x * (math.log(x / y) if y > 0 else math.inf) for x, y in zip(p, q, strict=True) if x > 0)


def js(p: Sequence[float], q: Sequence[float]) -> float:
    mean = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (kl(p, mean) + kl(q, mean)) / 2


def tilted(said: Said, alpha: float) -> list[float]:
    """The combination at a strength, of what all three find possible."""
    every = zip(said["base"], said["tuned"], said["reference"], strict=True)
    weights = [b * (t / r) ** alpha if b > 0 and t > 0 and r > 0 else 0.0 for b, t, r in every]
    return [w / sum(weights) for w in weights]


def largest(said: Said, bound: float, most: float) -> float:
    """Found by halving, as the divergence grows with the strength."""
    allowed = bound * kl(said["tuned"], said["reference"])
    if kl(tilted(said, most), said["base"]) <= allowed:
        return most
    low, high = 0.0, most
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(tilted(said, middle), said["base"]) <= allowed else (low, middle)
    return low


def bet(said: Said, margin: float) -> float:
    return 1.0 if max(said["base"]) < max(said["tuned"]) - margin else 0.0


def weighed(said: Said, most: float) -> float:
    base, tuned = entropy(said["base"]), entropy(said["tuned"])
    return most * base / (base + tuned)


def mass(p: Sequence[float], q: Sequence[float], least: float) -> float:
    """What p gives to the nucleus of q."""
    total, found = 0.0, 0.0
    for token in sorted(range(len(q)), key=lambda token: -q[token]):
        if total >= least:
            break
        total, found = total + q[token], found + p[token]
    return found


def top(p: Sequence[float]) -> int:
    return max(range(len(p)), key=lambda token: p[token])


def gated(said: Said, gate: Gate) -> float:
    members = [said[name] for name in gate.members]
    features = [value for p in members for value in (math.log(1 + entropy(p)), max(p))]
    for i, p in enumerate(members):
        for q in members[i + 1 :]:
            features += [js(p, q) / math.log(2), float(top(p) == top(q)), mass(p, q, 0.9)]
    w = {name: weight.double().tolist() for name, weight in gate.weights.items()}
    hidden = [
        math.tanh(bias + sum(a * b for a, b in zip(row, features, strict=True)))
        for row, bias in zip(w["hidden.weight"], w["hidden.bias"], strict=True)
    ]
    return gate.most / (1 + math.exp(-w["out.bias"][0] - sum(a * b for a, b in zip(w["out.weight"][0], hidden, strict=True))))


def trained(seed: int = 4, **options: Any) -> Gate:
    """A gate that says different things in different places."""
    start = Gate.start(**options)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: weight + torch.randn(weight.shape, generator=generator) for name, weight in start.weights.items()}
    return Gate(weights, start.members, start.most)


def doubt(log_probs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return 1.5 * (1 - log_probs["base"].amax(-1).exp())


GATE = trained()
# Each rule, and what it says of the members' probabilities at a place.
RULES: dict[str, tuple[Rule, Callable[[Said], float]]] = {
    "kl": (KLConstrained(bound=0.5, most=3.0), lambda said: largest(said, 0.5, 3.0)),
    "bet": (Confidence(margin=0.05), lambda said: bet(said, 0.05)),
    "unsure": (Confidence(threshold=0.6, most=1.4, least=0.2), lambda said: 1.4 if max(said["base"]) < 0.6 else 0.2),
    "entropy": (Entropy(most=2.5), lambda said: weighed(said, 2.5)),
    "js": (Divergence("tuned", "reference", most=1.5), lambda said: 1.5 * js(said["tuned"], said["reference"]) / math.log(2)),
    "gate": (GATE, lambda said: gated(said, GATE)),
    "written": (Rule.of(doubt, reads=["base"]), lambda said: 1.5 * (1 - max(said["base"]))),
}


def model(rule: Any, **more: Any) -> EFTForCausalLM:
    return thinking.model(Combination.emulate(alpha=rule), **more)


def log_probs(row: torch.Tensor, says: Callable[[Said], float], models: Mapping[str, Any] | None = None) -> torch.Tensor:
    """What follows a text, `(length,)`, by whole forwards of every member: `(vocab,)`."""
    models = thinking.members() if models is None else models
    logits = {name: oracle.along(each, row)[-1] for name, each in models.items()}
    alpha = says({name: values.softmax(-1).tolist() for name, values in logits.items()})
    coefficients = {"base": 1.0, "tuned": alpha, "reference": -alpha}
    return oracle.combined({name: values.log_softmax(-1) for name, values in logits.items()}, coefficients).log_softmax(-1)


def greedy(inputs: Mapping[str, torch.Tensor], says: Callable[[Said], float], steps: int = STEPS) -> list[list[int]]:
    """What each row of a padded batch goes on with."""
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        row = ids[mask.bool()]
        for _ in range(steps):
            row = torch.cat([row, log_probs(row, says).argmax()[None]])
        rows.append(row[int(mask.sum()) :].tolist())
    return rows
