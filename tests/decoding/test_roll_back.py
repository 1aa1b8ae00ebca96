"""Members with recurrent states: exact under speculation, which puts their states back and lets them read again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import RECURRENT, build, prompts, shared
from oracle import log_probs
from random_cases import double, random_case

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.releases import cache_of

POOL = [*RECURRENT, "llama", "mistral", "lfm2", "gpt2"]


@pytest.mark.parametrize("start", [0, 25, *(pytest.param(start, marks=pytest.mark.nightly) for start in (50, 75))])
def test_random_cases_give_the_tokens_of_plain_decoding(start: int) -> None:
    for number in range(start, start + 25):
        model, inputs, options, how = random_case(number, POOL, rows=4)
        expected = model.generate(**inputs, **options).tolist()
        got = model.generate(**inputs, **options, **how).tolist()
        assert got == expected, f"case {number}: {options} {how}"


def rejecting(family: str, partner: str) -> EFTForCausalLM:
    """Members of which the drafter is hardly ever right."""
    base, tuned, reference = double(family, 0), double(partner, 1), double(partner, 2)
    return EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=0.1)


@pytest.mark.parametrize("padding", ["one", "left"])
@pytest.mark.parametrize("family", [*RECURRENT, "llama"])
def test_rejections_in_every_round_against_the_stateless_oracle(family: str, padding: str) -> None:
    model = rejecting(family, "qwen3_5" if family == "llama" else family)
    inputs = prompts(padding)
    options: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None}
    got = model.generate(**inputs, **options, assistant_model=model.tuned, num_assistant_tokens=3)
    assert sum(model.speculation.accepted) < sum(model.speculation.drafted) / 2
    coefficients = {"base": 1.0, "tuned": 0.1, "reference": -0.1}
    for row, (ids, keep) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"], strict=True)):
        text = ids[keep.bool()]
        for _ in range(8):
            text = torch.cat([text, log_probs(model.members, coefficients, text).argmax()[None]])
        assert got[row, -8:].tolist() == text[-8:].tolist()


@pytest.mark.parametrize("family", RECURRENT)
@torch.no_grad()
def test_several_tokens_are_read_at_once_where_a_model_goes_on_from_its_states(family: str) -> None:
    model = double(family, 0)
    members = EFTForCausalLM.from_models(model, tuned=model, combination=Combination({"base": 1.0, "tuned": 0.0}))._members
    ids = prompts("even")["input_ids"]
    whole = model(ids, use_cache=False).logits
    cache = members.new_cache()
    places = torch.arange(9)[None]
    members.step(ids[:, :3], position_ids=places[:, :3], cache=cache, use_cache=True)
    logits = members.step(ids[:, 3:], position_ids=places[:, 3:6], cache=cache, use_cache=True)["base"].logits
    torch.testing.assert_close(logits, whole[:, 3:], atol=1e-4, rtol=1e-4)
    at_once = family not in {"mamba", "jamba"}  # these start from nothing when they are given several tokens
    again: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: again.append(1))
    members.step(ids[:, :3], position_ids=places[:, 6:], cache=cache, use_cache=True)
    hook.remove()
    assert len(again) == (1 if at_once else 3)


@pytest.mark.parametrize("family", ["mamba2", "qwen3_5", "falcon_h1"])
def test_an_add_on_with_recurrent_members_reads_again_from_where_it_was_marked(family: str) -> None:
    base, tuned, reference = double("llama", 0), double(family, 1), double(family, 2)
    processor = EFTLogitsProcessor(tuned, reference, alpha=0.3)
    inputs, options = prompts("one"), {"max_new_tokens": 12, "eos_token_id": None}
    expected = base.generate(**inputs, **options, logits_processor=[processor])
    read: list[int] = []
    hook = tuned.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    got = base.generate(
        **inputs, **options, logits_processor=[processor], assistant_model=double("llama", 7), num_assistant_tokens=3
    )
    hook.remove()
    assert got.tolist() == expected.tolist()
    assert sum(n >= 6 for n in read) <= 2  # the prompt once, and once more when the first draft was rejected


def test_states_outside_of_the_cache_are_refused_where_they_would_have_to_move() -> None:
    outside = build("llama", 1)
    outside._is_stateful = True  # it has states, and none of them is in its cache
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=outside, combination=Combination({"base": 1.0, "tuned": 0.5}))
    inputs = prompts("even")
    for options in ({"assistant_model": model.members["base"]}, {"do_sample": True, "coupling": "match", "seed": 1}):
        with pytest.raises(ValueError, match=r"'tuned' .* keeps its recurrent states outside of its cache"):
            model.generate(**inputs, max_new_tokens=4, **options)


def test_a_rolled_back_cache_goes_on_in_a_later_call() -> None:
    model = rejecting("falcon_h1", "qwen3_5")
    inputs, options = prompts("one"), {"eos_token_id": None, "pad_token_id": 0}
    first = model.generate(
        **inputs, **options, max_new_tokens=7, assistant_model=model.tuned, num_assistant_tokens=3, return_dict_in_generate=True
    )
    got = model.generate(first.sequences, **options, max_new_tokens=6, cache=cache_of(first))
    assert got.tolist() == model.generate(**inputs, **options, max_new_tokens=13).tolist()


@torch.no_grad()
def test_what_an_outsider_with_recurrent_states_drafts_is_what_it_would_say() -> None:
    outsider, ids, block, room = double("olmo_hybrid", 7), prompts("one")["input_ids"], 3, 24
    base = copy.deepcopy(outsider)
    model = EFTForCausalLM.from_models(base, tuned=double("llama", 1), reference=double("llama", 2), alpha=0.3)
    whole = model.generate(ids, max_new_tokens=room, eos_token_id=None)
    target, kept, known = whole[0].tolist(), [], ids.shape[1] + 1
    while known < len(target):
        text = target[:known]
        for _ in range(min(block, len(target) - known - 1)):
            text = [*text, int(outsider(torch.tensor([text]), use_cache=False).logits[0, -1].argmax())]
        agreed = [a == b for a, b in zip(text[known:], target[known:], strict=False)]
        kept.append(agreed.index(False) if False in agreed else len(agreed))
        known += kept[-1] + 1
    model.generate(ids, max_new_tokens=room, eos_token_id=None, assistant_model=outsider, num_assistant_tokens=block)
    assert sum(model.speculation.accepted) == sum(kept) > 0
    assert model.speculation.rounds == len(kept)


@pytest.mark.parametrize("new_tokens", [2, 3, 5])
def test_a_cache_that_counts_no_tokens_is_gone_on_from(new_tokens: int) -> None:
    base, tuned, reference = (shared("mamba", seed) for seed in range(3))
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    said = model.generate(
        torch.tensor([[3]]), max_new_tokens=new_tokens, assistant_model=model.tuned, num_assistant_tokens=1,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    text = torch.cat([said.sequences, torch.tensor([[3]])], dim=1)
    assert cache_of(said).seen_tokens == said.sequences.shape[1] - 1  # the last token has not been read
    more = model.generate(text, cache=cache_of(said), max_new_tokens=4, **options)
    assert torch.equal(more, model.generate(text, max_new_tokens=4, **options))
