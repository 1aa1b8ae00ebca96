"""Members on adapters of one model, on static caches: views of one store, read in one pass where they read the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS, adapted
from families import prompts
from random_cases import double, random_case
from tape import static, taped
from transformers import StaticCache

from hf_eft import Combination, EFTForCausalLM
from hf_eft.members.adapters.joint_static import StaticJoint
from hf_eft.members.cache import EFTCache
from hf_eft.members.ragged import is_ragged
from hf_eft.members.releases import cache_of

pytestmark = PEFT_SAYS
STATIC: dict[str, Any] = {"cache_implementation": "static"}


def model_of(kind: str = "lora", family: str = "llama", **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(double("llama", 0), tuned=adapted(kind, family)[0].double(), **{"alpha": 0.6, **options})


def joint_of(cache: Any) -> StaticJoint:
    (joint,) = cache.joints.values()
    assert isinstance(joint, StaticJoint)
    return joint


@pytest.mark.parametrize("start", range(0, 24, 8))
def test_random_cases(start: int) -> None:
    """Plain and with drafts, run and recorded: the tokens of caches that grow."""
    models = [model_of(), model_of("lora_bias", "gpt2", alpha=1.0), model_of("head and embeddings")]
    for number in range(start, start + 8):
        other, inputs, options, how = random_case(number, pool=("llama",), rows=4)
        model = models[number % 3]
        if (assistant := how.get("assistant_model")) is not None:
            which = next((name for name, each in other.members.items() if each is assistant), None)
            how["assistant_model"] = (
                assistant if which is None else model.members[which] if number % 2 else model.small_combination
            )
        expected = model.generate(**inputs, **options).tolist()
        for extra in ({}, how):
            assert model.generate(**inputs, **options, **extra, **STATIC).tolist() == expected, (
                f"case {number}: {options} {extra}"
            )
            with taped():
                assert model.generate(**inputs, **options, **extra, **static()).tolist() == expected, f"case {number} recorded"


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_states_are_views_of_one_store_where_one_pass_is_possible(kind: str) -> None:
    model = model_of(kind)
    out = model.generate(**prompts("left"), max_new_tokens=6, return_dict_in_generate=True, **STATIC)
    stores = [{layer.keys.untyped_storage().data_ptr() for layer in each.layers} for each in cache_of(out).members.values()]
    assert stores[0].isdisjoint(stores[1])
    assert (stores[1] == stores[2]) == (kind == "lora")
    lengths = [int(layer.cumulative_length) for each in cache_of(out).members.values() for layer in each.layers]
    assert len(set(lengths)) == 1
    for joint in cache_of(out).joints.values():
        assert int(joint.cache.get_seq_length()) == lengths[0] and not is_ragged(joint.cache)  # so its tokens are counted


def test_a_cache_goes_on_in_later_calls_and_copies() -> None:
    model, ids = model_of(), prompts("one")["input_ids"]
    whole = model.generate(ids, max_new_tokens=24, min_new_tokens=24)
    cache = StaticCache(config=model.base.config, max_cache_len=64)
    first = model.generate(ids, max_new_tokens=8, min_new_tokens=8, cache=cache)
    joint, forked = joint_of(cache), copy.deepcopy(cache)
    for each in (cache, forked):
        # One token by plain decoding, drafts by one member alone, and on.
        text = model.generate(first, max_new_tokens=1, min_new_tokens=1, cache=each)
        text = model.generate(
            text, max_new_tokens=7, min_new_tokens=7, cache=each, assistant_model=model.tuned, num_assistant_tokens=2
        )
        assert torch.equal(model.generate(text, max_new_tokens=8, min_new_tokens=8, cache=each), whole)
    assert joint_of(cache) is joint and joint_of(forked) is not joint
    assert not joint.is_even  # members that have read alone go on alone
    cache.reset()
    assert torch.equal(model.generate(ids, max_new_tokens=24, min_new_tokens=24, cache=cache), whole)
    assert joint_of(cache) is joint and joint.is_even


def test_a_prompt_of_ones_own_is_read_alone_and_so_is_what_follows() -> None:
    model = model_of()
    inputs, own = prompts("one"), {"tuned": {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}}
    for given in ({}, {"member_inputs": own}, {}):
        expected = model.generate(**inputs, **given, max_new_tokens=8)
        assert torch.equal(model.generate(**inputs, **given, max_new_tokens=8, **STATIC), expected)
    with taped():
        for given in ({"member_inputs": own}, {}, {"member_inputs": own}):
            expected = model.generate(**inputs, **given, max_new_tokens=8)
            assert torch.equal(model.generate(**inputs, **given, max_new_tokens=8, **static()), expected)


def test_an_adapter_on_the_base() -> None:
    """The cache that `generate` sees is one of the two."""
    large = adapted()[0].double()
    model = EFTForCausalLM.from_models(None, tuned=large, combination=Combination.interpolate(0.5))
    expected = model.generate(**prompts("left"), max_new_tokens=10)
    for _ in range(2):
        out = model.generate(**prompts("left"), max_new_tokens=10, return_dict_in_generate=True, **STATIC)
        assert torch.equal(out.sequences, expected) and joint_of(cache_of(out)).is_even
    with taped() as counts:
        assert torch.equal(model.generate(**prompts("left"), max_new_tokens=10, **static()), expected)
    assert counts.replayed == 9


def test_beams_reorder_the_rows_of_each() -> None:
    model = model_of()
    options: dict[str, Any] = {**prompts("left"), "max_new_tokens": 10, "num_beams": 3, "num_return_sequences": 2}
    expected = model.generate(**options)
    for _ in range(2):
        assert torch.equal(model.generate(**options, **STATIC), expected)
    assert torch.equal(
        model.generate(**prompts("left"), max_new_tokens=10, **STATIC), model.generate(**prompts("left"), max_new_tokens=10)
    )


@torch.no_grad()
def test_tokens_that_are_taken_back_and_states_that_are_replaced() -> None:
    model, ids = model_of(), torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
    cache = EFTCache.attach(StaticCache(config=model.base.config, max_cache_len=16), model._members.distinct_models)
    expected = model(ids).logits
    model(ids[:, :4], cache=cache)
    cache.crop(-2)
    torch.testing.assert_close(model(ids[:, 2:], cache=cache).logits, expected[:, 2:])
    assert joint_of(cache).is_even
    cache.crop(-1)
    cache.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(model(ids[[1, 0], 5:], cache=cache).logits, expected[[1, 0], 5:])
    cache.reset()
    model(ids[:, :5], cache=cache)
    for layer in cache.members["reference"].layers:  # somebody has it go on from the other row's text
        layer.keys, layer.values = layer.keys.flip(0), layer.values.flip(0)
    text = torch.cat([ids[[1, 0], :5], ids[:, 5:]], dim=1)
    by_hand = expected.double() + 0.6 * (model.reference(ids).logits - model.reference(text).logits)
    torch.testing.assert_close(model(ids[:, 5:], cache=cache).logits, by_hand[:, 5:].float())


def test_caches_that_are_not_of_one_shape_are_read_apart() -> None:
    """A window is kept by each for itself."""
    model = model_of(family="mistral")
    expected = model.generate(**prompts("left"), max_new_tokens=20)
    out = model.generate(**prompts("left"), max_new_tokens=20, return_dict_in_generate=True, **STATIC)
    assert torch.equal(out.sequences, expected) and not cache_of(out).joints
