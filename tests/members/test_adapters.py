"""Adapters as members give the results of full models of their own, whatever they are, however they are combined and decoded."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from adapted import FAMILY_OF, KINDS, PEFT_SAYS, adapted, lora, merged, plain, same, shake
from families import build, prompts, shared
from transformers import CompileConfig

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.releases import cache_of

pytestmark = PEFT_SAYS


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_gives_what_full_models_give(kind: str) -> None:
    family = FAMILY_OF.get(kind, "llama")
    model, small = adapted(kind, family)
    base, full, reference = shared("llama", 0), merged(model), plain(family)
    assert not torch.allclose(full(**prompts("one")).logits, reference(**prompts("one")).logits, atol=0.1)
    eft = EFTForCausalLM.from_models(base, tuned=model)
    oracle = EFTForCausalLM.from_models(base, tuned=full, reference=reference)
    assert [stack.names for stack in eft._members.stacks] == ([("tuned", "reference")] if KINDS[kind][1] else [])
    for padding in ("one", "left"):
        inputs = prompts(padding)
        torch.testing.assert_close(eft(**inputs).logits, oracle(**inputs).logits, atol=2e-4, rtol=1e-4)
        same(eft, oracle, inputs)
        expected = oracle.generate(**inputs, max_new_tokens=10, do_sample=False)
        assert eft.generate(**inputs, max_new_tokens=10, do_sample=False, assistant_model=model).tolist() == expected.tolist()
        assert eft.speculation.rounds > 0
        add_on = EFTLogitsProcessor(model, small, pad_token_id=0)
        assert base.generate(**inputs, max_new_tokens=10, logits_processor=[add_on]).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "opt", "mixtral", "lfm2", "mamba"]
)
def test_families(family: str) -> None:
    targets = ["in_proj", "x_proj"] if family == "mamba" else "all-linear"
    model = peft.get_peft_model(build(family, 1), lora(target_modules=targets)).eval()
    base = shared("llama", 0)
    eft = EFTForCausalLM.from_models(base, tuned=model)
    oracle = EFTForCausalLM.from_models(base, tuned=merged(model), reference=plain(family))
    for padding in ("one", "even", "left") if family != "mamba" else ("one", "even"):
        same(eft, oracle, prompts(padding))
        if family != "mamba":
            same(eft, oracle, prompts(padding), num_beams=3)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"prefill_chunk_size": 4},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"no_repeat_ngram_size": 2},
        {"guidance_scale": 1.5},
        {"max_new_tokens": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_strategies(family: str, options: dict[str, Any]) -> None:
    model = peft.get_peft_model(build(family, 1), lora()).eval()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=merged(model), reference=plain(family))
    same(eft, oracle, prompts("left"), **options)


@pytest.mark.parametrize("kind", ["lora", "head and embeddings"])  # PEFT's DoRA breaks a graph
def test_static_caches_compile_to_full_graphs(kind: str) -> None:
    model, _ = adapted(kind)
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=merged(model), reference=plain())
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=True)
    compiled._compile_all_devices = True
    torch._dynamo.reset()
    options = {"cache_implementation": "static", "max_new_tokens": 10}
    got = eft.generate(**prompts("left"), **options, compile_config=compiled).tolist()
    assert got == oracle.generate(**prompts("left"), max_new_tokens=10).tolist()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


def test_sampled_tokens_are_those_of_the_seed() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=merged(model), reference=plain())
    options = {"do_sample": True, "coupling": "match", "seed": [4, 5, 6]}
    same(eft, oracle, prompts("left"), **options)
    expected = oracle.generate(**prompts("left"), **options, max_new_tokens=10).tolist()
    drafted = eft.generate(**prompts("left"), **options, max_new_tokens=10, assistant_model=eft.tuned).tolist()
    assert drafted == expected


def test_an_adapter_on_the_base() -> None:
    """DeRa: at strength 1 the adapter alone, in between the mixture; base, tuned and reference are one model's weights."""
    model, small = adapted("head and embeddings")
    eft = EFTForCausalLM.from_models(small, tuned=model, reference=small)
    assert eft._members.stacks[0].names == ("base", "tuned")
    inputs = prompts("left")
    assert (
        eft.generate(**inputs, max_new_tokens=10).tolist()
        == model.generate(**inputs, max_new_tokens=10, do_sample=False).tolist()
    )
    eft.combination = Combination.emulate(alpha=0.5)
    oracle = EFTForCausalLM.from_models(plain(), tuned=merged(model), reference=plain(), alpha=0.5)
    same(eft, oracle, inputs)
    realigned = EFTForCausalLM.from_models(None, tuned=model, combination=Combination.interpolate(0.5))
    same(realigned, EFTForCausalLM.from_models(None, merged(model), plain(), combination=Combination.interpolate(0.5)), inputs)


def test_several_adapters_are_several_members() -> None:
    model, _ = adapted(name="polite")
    model.add_adapter("brief", lora(r=2, target_modules="all-linear"))
    model.add_adapter("warm", lora(target_modules=["k_proj"], modules_to_save=["lm_head"]))
    shake(model.eval(), 8)
    full = {}
    for name in ("polite", "brief", "warm"):
        alone = copy.deepcopy(model)
        alone.set_adapter(name)
        full[name] = alone.merge_and_unload(adapter_names=[name]).eval()
    combination = Combination.steer({"polite": 0.7, "brief": 0.6, "warm": -0.4})
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model, combination=combination)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=full, reference=plain(), combination=combination)
    assert list(eft.members) == ["base", "polite", "brief", "warm", "reference"]
    assert [len(stack.names) for stack in eft._members.stacks] == [4]
    inputs = prompts("left")
    same(eft, oracle, inputs)
    rows = torch.tensor([[1.0, 1.0, 0.0, 0.0, -1.0], [1.0, 0.0, 1.0, 0.5, -1.5], [0.0, 0.5, 0.5, 0.0, 0.0]])
    same(eft, oracle, inputs, coefficients=rows)
    two = {"warm": model, "brief": model}
    mixed = Combination.mix({"warm": 0.5, "brief": 0.5})
    picked = EFTForCausalLM.from_models(None, tuned=two, combination=mixed)
    same(picked, EFTForCausalLM.from_models(None, tuned={k: full[k] for k in two}, combination=mixed), inputs)
    for name in full:
        model.set_adapter(name)
        expected = oracle.generate(**inputs, max_new_tokens=10).tolist()
        assert eft.generate(**inputs, max_new_tokens=10, assistant_model=model).tolist() == expected
        assert eft.generate(**inputs, max_new_tokens=10, assistant_model=eft.members[name]).tolist() == expected


def test_a_reference_may_be_an_adapter() -> None:
    """MOD and DPO on a supervised adapter: reference and tuned are two adapters of one model."""
    model, _ = adapted(name="tuned")
    model.add_adapter("reference", lora(target_modules=["k_proj"]))
    shake(model.eval(), 8)
    full = {}
    for name in ("tuned", "reference"):
        alone = copy.deepcopy(model)
        alone.set_adapter(name)
        full[name] = alone.merge_and_unload(adapter_names=[name]).eval()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned={"tuned": model}, reference=model)
    same(eft, EFTForCausalLM.from_models(shared("llama", 0), **full), prompts("left"))


def test_conversations_go_on_from_a_returned_cache() -> None:
    model, _ = adapted()
    eft = EFTForCausalLM.from_models(shared("llama", 0), tuned=model)
    oracle = EFTForCausalLM.from_models(shared("llama", 0), tuned=merged(model), reference=plain())
    inputs = prompts("even")
    first = eft.generate(**inputs, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True)
    forked = copy.deepcopy(cache_of(first))
    expected = oracle.generate(first.sequences, max_new_tokens=6).tolist()
    for cache in (cache_of(first), forked):
        assert eft.generate(first.sequences, cache=cache, max_new_tokens=6).tolist() == expected


def test_the_add_on_reorders_and_rolls_back() -> None:
    model, small = adapted()
    base, reference = shared("llama", 0), plain()
    mine, theirs = (
        EFTLogitsProcessor(model, small, pad_token_id=0),
        EFTLogitsProcessor(merged(model), reference, pad_token_id=0),
    )
    for options in ({"num_beams": 3}, {}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {}):
        inputs = prompts("one" if "prompt_lookup_num_tokens" in options else "left")
        got, expected = (
            base.generate(**inputs, logits_processor=[p], max_new_tokens=10, **options).tolist() for p in (mine, theirs)
        )
        assert got == expected
