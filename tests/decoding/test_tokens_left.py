"""Rows for which processors leave no token: told apart from those that have ended, and refused where one would be chosen."""

from __future__ import annotations

import pytest
import torch
from families import prompts, shared

from hf_eft import Combination, EFTForCausalLM, Truncation
from hf_eft.decoding.tokens_left import BeamsLeft, SomethingLeft, refuse_marked

INF = torch.inf
SCORES = torch.tensor([[-INF, 1.0, 2.0], [-INF, -INF, -INF], [0.0, -INF, -INF]])


@pytest.mark.parametrize("said", [[[6, 7], [6, 7], [6, 7]], [[6, 7], [2, 7], [6, 2]], [[], [], []]], ids=str)
def test_a_row_that_has_not_ended_needs_a_token(said: list[list[int]]) -> None:
    """What its prompt holds, and that others have ended, does not matter."""
    prompt = torch.tensor([[5, 2], [2, 9], [2, 2]])
    ids = torch.cat([prompt, torch.tensor(said, dtype=torch.long)], dim=1)
    look = SomethingLeft(2, [2, 3], 9, is_final=True)
    if said[1][:1] == [2]:
        assert look(ids, SCORES)[1].unique().tolist() == [torch.finfo(torch.float32).min]
    else:
        with pytest.raises(ValueError, match="no token left for row 1"):
            look(ids, SCORES)


def test_a_row_that_is_filled_has_ended() -> None:
    ids = torch.tensor([[5, 6, 7], [5, 6, 9], [5, 6, 7]])
    filled = SomethingLeft(1, [2], 9, is_final=True)(ids, SCORES)
    assert torch.equal(filled[[0, 2]], SCORES[[0, 2]]) and bool(filled[1].isfinite().all())
    for pad in (None, 8):
        with pytest.raises(ValueError, match="no token left for row 1"):
            SomethingLeft(1, [2], pad, is_final=True)(ids, SCORES)
    ends = SomethingLeft(1, [2], 9, is_final=True)
    assert ends(ids, SCORES[[0, 2, 0]]) is not None and torch.equal(ends(ids, SCORES[[0, 2, 0]]), SCORES[[0, 2, 0]])


def test_a_row_that_only_drafts_is_marked_and_refused_where_its_token_is_taken() -> None:
    ids = torch.tensor([[5, 6], [5, 6], [5, 6]])
    marked = SomethingLeft(1, [2], None, is_final=False)(ids, SCORES)
    assert torch.equal(marked[[0, 2]], SCORES[[0, 2]])
    scores = torch.stack([SCORES[[0, 2, 0]], marked], dim=1)  # (rows, positions, vocab): row 1 has none at its second position
    refuse_marked(scores, [4, 6, 7], [2, 1, 2])
    with pytest.raises(ValueError, match="no token left for row 6"):
        refuse_marked(scores, [4, 6, 7], [0, 2, 0])


def test_a_search_needs_a_token_for_prompts_without_a_text_that_has_ended() -> None:
    left = BeamsLeft()
    assert left.look(SCORES[[0, 2]]).equal(SCORES[[0, 2]])
    for left.ended in (None, torch.tensor([True, False, True])):
        with pytest.raises(ValueError, match="no token left for row 1"):
            left.look(SCORES)
    left.ended = torch.tensor([False, True, False])
    filled = left.look(SCORES)
    assert filled[[0, 2]].equal(SCORES[[0, 2]]) and bool(filled[1].isfinite().all())


@pytest.mark.parametrize("how", [{}, {"do_sample": True}], ids=str)
def test_a_search_returns_the_texts_that_ended_before_nothing_was_left(how: dict) -> None:
    """The nucleus is one token here."""
    model = EFTForCausalLM.from_models(
        shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2),
        combination=Combination.emulate(truncation=Truncation("drop", 0.01)),
    )  # fmt: skip
    both = {name: torch.cat([x, x.flip(1)]) for name, x in prompts("even").items()}
    length = both["input_ids"].shape[1]
    first = model.generate(**both, max_new_tokens=1)[:, -1].tolist()
    assert len(set(first)) > 1

    def forbidding(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores if ids.shape[1] == length else torch.full_like(scores, -torch.inf)

    options = {"max_new_tokens": 5, "num_beams": 2, "logits_processor": [forbidding], **how}
    assert model.generate(**both, **options, eos_token_id=first)[:, length].tolist() == first
    with pytest.raises(ValueError, match="no token left for row 1"):
        model.generate(**both, **options, eos_token_id=first[:1])


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"do_sample": True, "coupling": "match", "seed": 1}], ids=str)
@pytest.mark.parametrize("rule", ["drop", "keep"])
def test_a_call_whose_processors_leave_nothing_is_refused(rule: str, options: dict) -> None:
    recipe = Combination.emulate(truncation=Truncation(rule, 0.01))  # type: ignore[arg-type]
    model = EFTForCausalLM.from_models(
        shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2), combination=recipe
    )
    forbidden = {"suppress_tokens": list(range(3, 64)), "max_new_tokens": 2, **options}
    if rule == "drop":
        with pytest.raises(ValueError, match="no token left for row 0"):
            model.generate(**prompts("even"), **forbidden)
    else:
        assert model.generate(**prompts("even"), **forbidden)[:, 6:].max() < 3
