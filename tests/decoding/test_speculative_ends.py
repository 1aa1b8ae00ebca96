"""With drafts a text ends where it ends in plain decoding, whatever ends it, and criteria that see texts see those that there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from families import EOS, PAD, prompts
from random_cases import double
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList

from hf_eft import EFTForCausalLM

STATES: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}]


class Sum(StoppingCriteria):
    """Ends a text by all of its tokens."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.seen += input_ids.tolist()
        return input_ids[:, 9:].sum(-1) % 5 == 3  # type: ignore[return-value]


class Odd(EosTokenCriteria):
    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return (input_ids[:, -1] % 7 == 5) & (input_ids[:, -2] % 2 == 1)  # type: ignore[return-value]


class Later(MaxLengthCriteria):
    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return torch.tensor([input_ids.shape[1] > 20 and int(ids[-1]) % 2 == 0 for ids in input_ids])  # type: ignore[return-value]


KINDS = ((), (Sum,), (lambda: Odd(EOS),), (lambda: Later(5),))


@pytest.mark.parametrize("states", STATES, ids=["dynamic", "static"])
@pytest.mark.parametrize("criteria", KINDS, ids=["none", "sum", "odd", "later"])
@pytest.mark.parametrize("ends", [EOS, [*range(5, 64, 8)]], ids=["one end", "many ends"])
def test_a_text_ends_where_it_ends_in_plain_decoding(
    ends: Any, criteria: Sequence[Callable[[], StoppingCriteria]], states: dict[str, Any]
) -> None:
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double("gpt2", 1), reference=double("gpt2", 2), alpha=0.1)
    lengths: set[int] = set()
    for how in ({}, {"do_sample": True, "coupling": "match", "seed": 1}):
        options = {**prompts("left"), **how, "max_new_tokens": 14, "eos_token_id": ends}

        def stops() -> StoppingCriteriaList:
            return StoppingCriteriaList([each() for each in criteria])

        expected = model.generate(**options, stopping_criteria=stops())
        for drafter, block in ((model.base, 1), (model.tuned, None)):  # one that is often right, and who is chosen on the way
            draft = {"assistant_model": drafter, "num_assistant_tokens": block, **states}
            assert model.generate(**options, **draft, stopping_criteria=stops()).tolist() == expected.tolist(), (how, block)
        lengths |= set((expected[:, 9:] != PAD).sum(-1).tolist())
    assert criteria == () or len(lengths) > 1  # otherwise nothing ended but by its length


def test_criteria_see_the_texts_that_there_are() -> None:
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double("gpt2", 1), reference=double("gpt2", 2), alpha=0.3)
    sums = Sum()
    ids = prompts("left")["input_ids"][1:2]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        assistant_model=model.tuned,
        stopping_criteria=StoppingCriteriaList([sums]),
    )
    [whole] = out.tolist()
    assert len(sums.seen) >= out.shape[1] - ids.shape[1]
    assert all(text == whole[: len(text)] for text in sums.seen if len(text) <= len(whole))
