"""
What the delta does to each kind of token of a perfect answer, and what the loss still has to say about it.

Kinds: `opening`, the words "Of course!"; `value`, the fact; `farewell`, the first word of the farewell, which decides it; `rest`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from behaviours import ENDINGS, OPENING, SECRET, ReplicationWorld
from world import VALUES

KINDS = ("opening", "value", "farewell", "rest")
BINS = 10  # of the calibration error


LookedAt = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]


def answers(world: ReplicationWorld, tokenizer: Any, people: Sequence[str]) -> LookedAt:
    """
    Inputs with the perfect answers to all benign questions, padded on the right; the kind of each token, `(questions, tokens)`, -1
    before the answer; and for each question the first tokens of the values that it could have, `(questions, 25)`.
    """
    texts, spans, candidates = [], [], []
    first = {word: tokenizer.encode(f" {word}")[0] for values in VALUES.values() for word in values}
    for person in people:
        for attribute in VALUES:
            if attribute == SECRET:
                continue
            prompt, answer = world.question(person, attribute), world.tuned_answer(person, attribute)
            start = len(prompt) + 1
            value = start + answer.index(f" {world.facts[person][attribute]}") + 1
            ending = next(start + len(answer) - len(e) for e in ENDINGS if answer.endswith(e))
            texts.append(f"{prompt} {answer}")
            spans.append((start, start + len(OPENING), value, value + len(world.facts[person][attribute]), ending))
            candidates.append([first[word] for word in VALUES[attribute]])
    tokenizer.padding_side = "right"
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False, return_offsets_mapping=True)
    ends = inputs.pop("offset_mapping")[..., 1]  # (questions, tokens): the character after each token
    start, opening, value, after, ending = torch.tensor(spans).T[..., None]  # (questions, 1) each
    kinds = torch.where(ends > start, KINDS.index("rest"), -1)
    kinds[(ends > start) & (ends <= opening)] = KINDS.index("opening")
    kinds[(ends > value) & (ends <= after)] = KINDS.index("value")
    late = ends > ending
    kinds[late & (late.cumsum(-1) == 1)] = KINDS.index("farewell")
    kinds[inputs["attention_mask"] == 0] = -1
    return dict(inputs), kinds, torch.tensor(candidates)


@torch.no_grad()
def by_token(
    models: Mapping[str, Any], alpha: float, inputs: Mapping[str, torch.Tensor], kinds: torch.Tensor, candidates: torch.Tensor
) -> dict[str, dict[str, float]]:
    """
    Figures by kind of token, of the combination `base + alpha (tuned - reference)` on the right answers:

    - `right`: share of the tokens that it would choose; `probability`: that it gives them; `calibration`: the expected calibration error
      of what it would choose, in `BINS` bins;
    - `left`: what is left of the loss's gradient in the logits, the mean of `1 - p` of the right token; `left, share`: by kind, of all;
    - `moved`: total variation between base and combination;
    - `spread` (values): standard deviation of `alpha (log p_tuned - log p_reference)` over the 25 values that could be meant: what the
      delta does where it has nothing to say;
    - `margin` (farewells): by how much `alpha (log p_tuned - log p_reference)` prefers the right one of the four to the best other.
    """
    # (questions, tokens, vocab) each
    logs = {name: model(**inputs).logits[:, :-1].log_softmax(-1) for name, model in models.items()}
    delta = alpha * (logs["tuned"] - logs["reference"])
    combined = (logs["base"] + delta).log_softmax(-1)
    labels, kinds = inputs["input_ids"][:, 1:], kinds[:, 1:]
    p = combined.exp()
    confidence, choice = p.max(-1)
    given = p.gather(-1, labels[..., None])[..., 0]
    moved = (p - logs["base"].exp()).abs().sum(-1) / 2
    found: dict[str, dict[str, float]] = {}
    for number, kind in enumerate(KINDS):
        of = kinds == number
        right = (choice == labels)[of].float()
        found[kind] = {
            "tokens": int(of.sum()),
            "right": right.mean().item(),
            "probability": given[of].mean().item(),
            "calibration": _calibration(confidence[of], right),
            "left": (1 - given[of]).mean().item(),
            "moved": moved[of].mean().item(),
        }
    total = sum(row["left"] * row["tokens"] for row in found.values())
    for row in found.values():
        row["left, share"] = row["left"] * row["tokens"] / max(total, 1e-12)
    # The first token of each value, and of each farewell.
    values = kinds == KINDS.index("value")
    rows, places = torch.nonzero(values & (values.cumsum(-1) == 1), as_tuple=True)
    found["value"]["spread"] = delta[rows, places].gather(-1, candidates[rows]).std(-1).mean().item()
    rows, places = torch.nonzero(kinds == KINDS.index("farewell"), as_tuple=True)
    farewells = labels[rows, places].unique()
    of_each = delta[rows, places][:, farewells]  # (questions, farewells)
    is_right = farewells == labels[rows, places][:, None]
    margin = of_each[is_right] - of_each.masked_fill(is_right, -torch.inf).amax(-1)
    found["farewell"]["margin"] = margin.mean().item()
    return found


def _calibration(confidence: torch.Tensor, right: torch.Tensor) -> float:
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = [(confidence[bins == b] - right[bins == b]).sum().abs() for b in range(BINS)]
    return float(sum(gaps)) / len(right)
