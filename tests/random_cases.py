"""Random calls of `generate` and what makes them speculative, among members in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from families import FAMILIES, PAD, STATEFUL, VOCAB, build

from hf_eft import EFTForCausalLM

ROLLING = [family for family in FAMILIES if family not in STATEFUL]
_DOUBLES: dict[tuple[str, int], Any] = {}


def double(family: str, seed: int) -> Any:
    """In float64, so that a block and single tokens give the same float32 logits and no tie is broken by rounding.

    (Transformers' grouped experts take no float64.)"""
    if (family, seed) not in _DOUBLES:
        model = build(family, seed)
        _DOUBLES[family, seed] = model if family == "mixtral" else model.double()
    return _DOUBLES[family, seed]


def random_case(
    number: int, pool: Sequence[str] = ROLLING, rows: int = 8
) -> tuple[EFTForCausalLM, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A model of families of `pool`, inputs of `rows` rows at most, options, and what makes the call speculative."""
    rng = random.Random(number)
    families = [rng.choice(pool) for _ in range(3)]
    base, tuned, reference = (double(family, i) for i, family in enumerate(families))
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=rng.choice([0.3, 1.0]))
    rows = rng.randint(1, rows)
    lengths = [rng.randint(1, 9) for _ in range(rows)]
    ids, mask = torch.full((rows, max(lengths)), PAD), torch.zeros(rows, max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.tensor([rng.randrange(3, VOCAB) for _ in range(length)])
        mask[row, -length:] = 1
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 14)}
    if rng.random() < 0.5:
        options["eos_token_id"] = rng.sample(range(3, VOCAB), 4)  # rows end early
    for chance, extra in (
        (0.2, {"repetition_penalty": 1.5}),
        (0.2, {"no_repeat_ngram_size": 2}),
        (0.2, {"bad_words_ids": [[5], [6, 7]]}),
        (0.2, {"min_new_tokens": min(4, options["max_new_tokens"])}),
        (0.2, {"num_return_sequences": 2}),
    ):
        if rng.random() < chance and not ("num_return_sequences" in extra and rows > 4):
            options |= extra
    if rng.random() < 0.5 or "num_return_sequences" in options:
        options |= {"do_sample": True, "temperature": 0.7, "coupling": "match", "seed": rng.randrange(10**6)}
        if rng.random() < 0.5:
            options["top_k"] = 8
    if rng.random() < 0.2:
        options["coefficients"] = torch.tensor([[1.0, a, -a] for a in (rng.random() for _ in range(rows))])
    block = rng.choice([1, 2, 3, 4, 6, 8, 16, None])
    how: dict[str, Any] = {"num_assistant_tokens": block} if block else {}
    drafter = rng.choice(["tuned", "tuned", "tuned", "base", "reference", "outsider", "lookup"])
    if drafter == "lookup":
        how = {"prompt_lookup_num_tokens": block or 3}
    else:
        how["assistant_model"] = double("llama", 7) if drafter == "outsider" else model.members[drafter]
    return model, {"input_ids": ids, "attention_mask": mask}, options, how
