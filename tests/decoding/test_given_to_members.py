"""What members are given of a call: static caches, masks, and tokens that they have rows for."""

from __future__ import annotations

import pytest
import torch
from families import build, prompts, shared
from transformers import StaticCache

from hf_eft import EFTForCausalLM
from hf_eft.members import checks
from hf_eft.members.cache import EFTCache
from hf_eft.members.releases import CACHE


def test_members_that_no_static_cache_holds_are_refused_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: object, **options: object) -> None:
        raise TypeError("no such layer")

    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    expected = model.generate(**prompts("even"), max_new_tokens=3)
    assert torch.equal(model.generate(**prompts("even"), max_new_tokens=3, cache_implementation="static"), expected)
    monkeypatch.setattr(checks, "StaticCache", refuses)
    assert torch.equal(model.generate(**prompts("even"), max_new_tokens=3), expected)
    with pytest.raises(ValueError, match=r"'base' .* has layers whose states no static cache holds"):
        model.generate(**prompts("even"), max_new_tokens=3, cache_implementation="static")


def test_masks_are_made_for_members_that_attend() -> None:
    """So that no compiled pass makes them; state-space models take the mask of the tokens."""
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("mamba", 1), reference=shared("gemma3", 2))
    mask = prompts("left")["attention_mask"]
    cache = EFTCache.attach(StaticCache(model.base.config, max_cache_len=12), model._members.distinct_models, 12)
    masks = model.create_masks_for_generate(
        model.config, torch.zeros(3, 9, 32), mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), **{CACHE: cache}
    )
    assert set(masks) == {"base/", "tuned/", "reference/sliding_attention", "reference/full_attention"}
    assert masks["tuned/"] is mask
    assert masks["base/"].shape == masks["reference/full_attention"].shape == (3, 1, 9, 12)


@pytest.mark.parametrize("drafts", [False, True])
def test_rows_that_have_ended_are_filled_with_what_a_member_has_no_row_for(drafts: bool) -> None:
    wide = build("llama", 0, vocab_size=70)
    model = EFTForCausalLM.from_models(wide, tuned=shared("llama", 1), reference=shared("llama", 2))
    inputs, options = prompts("even"), {"max_new_tokens": 6, "eos_token_id": 69}  # which is never generated
    stop = [lambda ids, _: torch.tensor([ids.shape[1] >= 6 + 2, False])]
    how = {"assistant_model": model.tuned, "num_assistant_tokens": 2} if drafts else {}
    expected = model.generate(**inputs, **options)
    got = model.generate(**inputs, **options, **how, pad_token_id=68, stopping_criteria=stop)
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[0, :8], expected[0, :8]) and got[0, 8:].tolist() == [68] * 4


@pytest.mark.parametrize("way", ["dynamic", "static", "drafts"])
def test_padding_that_a_member_has_no_row_for_is_read_by_none(way: str) -> None:
    wide = build("llama", 0, vocab_size=70)
    model = EFTForCausalLM.from_models(wide, tuned=shared("llama", 1), reference=shared("llama", 2))
    inputs, options = prompts("left"), {"max_new_tokens": 4, "eos_token_id": 69}
    how = {
        "dynamic": {},
        "static": {"cache_implementation": "static"},  # masks that are made before do not say where padding is
        "drafts": {"assistant_model": model.tuned, "num_assistant_tokens": 2},
    }[way]
    ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 68)
    got = model.generate(ids, attention_mask=inputs["attention_mask"], **options, **how)
    assert torch.equal(got[:, 9:], model.generate(**inputs, **options)[:, 9:])


def test_embeddings_stand_for_the_tokens_beside_them() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    inputs, options = prompts("even"), {"max_new_tokens": 4, "eos_token_id": None}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, inputs_embeds=embeds, **options), expected)
    with pytest.raises(ValueError, match="`inputs_embeds` stand for 5 tokens, but `input_ids` are 6"):
        model.generate(**inputs, inputs_embeds=embeds[:, 1:], **options)
