"""Phases the slow way: where a text stands is searched anew in all of it, and what follows is asked of whole texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import oracle
import torch
from families import PAD, build

from hf_eft import Combination, EFTForCausalLM, Phase

TOKENS = 8  # so few that phases begin and end by chance
THINK = Phase("think", [5], [6, 7], budget=3)
PLAN = Phase("plan", [4, 3], [7], budget=None)
STRENGTHS = {"think": 1.4, "plan": -0.5, "answer": 0.3}
RECIPE = Combination.emulate(alpha=STRENGTHS, phases=[THINK, PLAN])


@functools.cache
def member(family: str, seed: int) -> Any:
    """A model of few tokens, in float64, so that a block and single tokens give the same logits."""
    return build(family, seed, vocab_size=TOKENS).double()


def members() -> dict[str, Any]:
    return {"base": member("llama", 0), "tuned": member("qwen3", 1), "reference": member("qwen3", 2)}


def model(recipe: Combination = RECIPE, **more: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(**{**members(), **more}, combination=recipe)


def prompts(rows: int, longest: int = 9) -> dict[str, torch.Tensor]:
    """Rows padded on the left, of any lengths. The first thinks, the second has begun to end that, the third plans, the fourth nearly."""
    generator = torch.Generator().manual_seed(11)
    ids, mask = torch.full((rows, longest), PAD), torch.zeros(rows, longest, dtype=torch.long)
    for row in range(rows):
        length = int(torch.randint(5, longest + 1, (1,), generator=generator))
        ids[row, -length:] = torch.randint(3, TOKENS, (length,), generator=generator)
        mask[row, -length:] = 1
    for row, end in enumerate(([4, 5], [5, 3, 6], [5, 6, 7, 4, 3], [5, 6, 7, 4])[:rows]):
        ids[row, -len(end) :] = torch.tensor(end)
    return {"input_ids": ids, "attention_mask": mask}


def standing(row: Sequence[int], phases: Sequence[Phase] = (THINK, PLAN)) -> tuple[str, int | None]:
    """The phase that a text stands in, and the token that must follow, if one must."""
    row, at, inside = list(row), 0, None

    def found(mark: Any, start: int) -> int | None:
        """Behind the first place of a marker."""
        ends = range(start + len(mark), len(row) + 1)
        return next((end for end in ends if row[end - len(mark) : end] == list(mark)), None)

    while True:
        if inside is None:
            begun = [(end, -len(phase.start), phase) for phase in phases if (end := found(phase.start, at)) is not None]
            if not begun:
                return "answer", None
            at, _, inside = min(begun, key=lambda each: each[:2])
        elif (end := found(inside.end, at)) is not None:
            at, inside = end, None
        else:
            break
    said, must = row[at:], list(inside.end)
    if inside.budget is None or len(said) < inside.budget:
        return inside.name, None
    written = next(n for n in range(len(must) - 1, -1, -1) if said[len(said) - n :] == must[:n])
    return inside.name, must[written]


def log_probs(
    row: torch.Tensor, strengths: Mapping[str, float] = STRENGTHS, phases: Sequence[Phase] = (THINK, PLAN), **more: Any
) -> torch.Tensor:
    """What follows a text, `(length,)`, by whole forwards of every member: `(vocab,)`."""
    phase, token = standing(row.tolist(), phases)
    alpha = strengths[phase]
    if token is not None:
        return torch.full((TOKENS,), -torch.inf, dtype=torch.double).scatter(0, torch.tensor(token), 0.0)
    return oracle.log_probs({**members(), **more}, {"base": 1.0, "tuned": alpha, "reference": -alpha}, row)


def greedy(inputs: Mapping[str, torch.Tensor], steps: int) -> list[list[int]]:
    """What each row goes on with."""
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        row = ids[mask.bool()]
        for _ in range(steps):
            row = torch.cat([row, log_probs(row).argmax()[None]])
        rows.append(row[int(mask.sum()) :].tolist())
    return rows
