"""Both leaves, where they meet what they are given: live weights, defaults, shapes, coefficients and labels by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapted import adapted
from families import build, prompts, shared

from hf_eft import Combination, EFTConfig, EFTForCausalLM, EFTLogitsProcessor, Truncation
from hf_eft.members.releases import CACHE, cache_of


@pytest.fixture
def model() -> EFTForCausalLM:
    return EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gpt2", 1), reference=shared("gpt2", 2))


def test_live_weights_are_left_as_they_are() -> None:
    base = build("llama", 0)
    base.lm_head = torch.nn.Linear(32, 64, bias=False)  # which transformers would take for one without weights
    before = base.lm_head.weight.clone()
    EFTForCausalLM.from_models(base, tuned=shared("gpt2", 1), reference=shared("gpt2", 2))
    assert torch.equal(base.lm_head.weight, before)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_what_a_configuration_alone_does_not_make_is_refused(model: EFTForCausalLM) -> None:
    with_adapter = EFTForCausalLM.from_models(shared("llama", 0), tuned=adapted()[0])
    for config in (with_adapter.config, EFTConfig()):
        with pytest.raises(ValueError, match="not made from a configuration: load the folder"):
            EFTForCausalLM(config)
    made = EFTForCausalLM(model.config)
    assert {name: type(each) for name, each in made.members.items()} == {n: type(e) for n, e in model.members.items()}
    assert made.combination == model.combination


def test_states_are_returned_as_the_configuration_says(model: EFTForCausalLM) -> None:
    ids = prompts("even")["input_ids"]
    assert cache_of(model(ids)).get_seq_length() == ids.shape[1]
    assert cache_of(model(ids, use_cache=False)) is None


def test_coefficients_of_positions_are_those_of_the_logits_that_are_kept(model: EFTForCausalLM) -> None:
    ids = prompts("even")["input_ids"]
    alphas = torch.linspace(0, 1, ids.shape[1]).expand(ids.shape)
    coefficients = torch.stack([torch.ones_like(alphas), alphas, -alphas], dim=-1)  # (rows, positions, members)
    every = model(ids, coefficients=coefficients).logits
    for position in (1, 4):
        alone = model(ids[:, : position + 1], coefficients=coefficients[:, position]).logits[:, -1]
        torch.testing.assert_close(every[:, position], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(ids, coefficients=coefficients, logits_to_keep=2).logits, every[:, -2:])
    torch.testing.assert_close(
        model(ids, coefficients=coefficients[:, 0], logits_to_keep=2).logits, shown(model, ids, 0.0)[:, -2:]
    )


def shown(model: EFTForCausalLM, ids: torch.Tensor, alpha: float) -> torch.Tensor:
    return model(ids, coefficients=torch.tensor([[1.0, alpha, -alpha]]).expand(len(ids), 3)).logits


def test_labels_are_of_the_positions_that_all_members_have(model: EFTForCausalLM) -> None:
    ids = prompts("even")["input_ids"]
    own: dict[str, Any] = {"tuned": {"input_ids": ids[:, 2:]}}  # another prompt, and the same continuation
    got = model(ids, labels=ids, member_inputs=own)
    assert got.logits.shape[1] == ids.shape[1] - 2
    expected = torch.nn.functional.cross_entropy(got.logits[:, :-1].flatten(0, 1), ids[:, 3:].flatten())
    torch.testing.assert_close(got.loss, expected)


@pytest.mark.parametrize("scores", [torch.zeros(64), torch.zeros(2, 1, 64), torch.zeros(3, 64)], ids=["one", "three", "other"])
def test_scores_of_another_shape_are_refused(scores: torch.Tensor) -> None:
    add_on = EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2))
    with pytest.raises(ValueError, match=r"`scores` of shape \(rows, vocab\), got \(2, 6\) and"):
        add_on(prompts("even")["input_ids"], scores)
    with pytest.raises(ValueError, match=r"`input_ids` of shape \(rows, length\).*, got \(6,\) and"):
        add_on(prompts("even")["input_ids"][0], torch.zeros(6, 64))


def test_a_row_without_any_token_left_is_refused_where_no_other_row_has_one() -> None:
    recipe = Combination.emulate(truncation=Truncation("drop", 0.01))
    add_on = EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2), combination=recipe)
    ids, scores = prompts("even")["input_ids"], torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    left = add_on(ids, scores).isfinite()
    assert left.any(-1).all() and not left.all()
    first = scores.masked_fill(left & torch.tensor([[True], [False]]), -torch.inf)  # what the truncation leaves is forbidden
    answer = add_on(ids, first)
    assert bool((answer[0] == -torch.inf).all()) and bool(answer[1].exp().sum().isclose(torch.tensor(1.0)))
    with pytest.raises(ValueError, match="no token left for row 0"):
        add_on(ids, scores.masked_fill(left, -torch.inf))


def test_what_a_call_generates_holds_no_place_and_what_a_later_prompt_says_does() -> None:
    add_on, scores = EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2)), torch.zeros(2, 64)
    add_on._placeholders = {5: "image_token_id"}
    text = torch.tensor([[20, 21, 22, 5, 7, 8, 5], [30, 31, 32, 33, 34, 35, 5]])
    add_on(text[:, :2], scores)
    for length in (3, 4, 5, 4, 5):  # step by step; drafts are asked about again
        add_on(text[:, :length], scores)
    with pytest.raises(ValueError, match=r"token 5 \(`image_token_id`\)"):
        add_on(text, scores)  # two tokens more at once: another prompt, a later turn of the talk


@torch.no_grad()
def test_a_schedule_counts_on_from_what_was_read() -> None:
    recipe = Combination.emulate(alpha=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    model = EFTForCausalLM.from_models(shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2), combination=recipe)
    ids = prompts("even")["input_ids"]
    whole = model(ids, use_cache=False).logits
    for position in range(6):
        alone = shown(model, ids, 0.2 * position)[:, position]
        torch.testing.assert_close(whole[:, position], alone, atol=1e-4, rtol=1e-4)
    first = model(ids[:, :3], use_cache=True)
    torch.testing.assert_close(first.logits, whole[:, :3], atol=1e-4, rtol=1e-4)
    second = model(ids[:, 3:], use_cache=True, **{CACHE: cache_of(first)})
    torch.testing.assert_close(second.logits, whole[:, 3:], atol=1e-4, rtol=1e-4)
