"""Caches: static and compiled, quantized, caller-made, continued, copied. The identity base = reference is the oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import build, prompts, shared
from transformers import CompileConfig, DynamicCache, StaticCache
from transformers.cache_utils import QuantizedCache

from hf_eft import EFTCache, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.releases import CACHE, cache_of

BIG_HEADS = {"hidden_size": 64, "head_dim": 16}  # the quantized cache groups by 64 values


def trio(base_family: str = "llama", tuned_family: str = "qwen3") -> tuple[Any, Any, Any, EFTForCausalLM]:
    base, tuned = shared(base_family, 0), shared(tuned_family, 1)
    reference = copy.deepcopy(base)
    return base, tuned, reference, EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)


def tokens(model: Any, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    return model.generate(**inputs, **{"max_new_tokens": 10, **options}).tolist()


def graphs_of(model: Any) -> int:
    """How many graphs two calls compile."""
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=True)
    compiled._compile_all_devices = True
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        model.generate(
            torch.tensor([[5, 6, 7]]),
            cache_implementation="static",
            compile_config=compiled,
            max_new_tokens=7,
            min_new_tokens=7,
        )
    torch.compiler.reset()
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_window_is_compiled_no_oftener_than_in_a_plain_model() -> None:
    """A small member whose window never slides needs no graph more than the main member; one whose window slides those that it needs."""
    base = build("llama", 0, num_hidden_layers=1)
    wide, narrow = (build("mistral", 1, num_hidden_layers=1, sliding_window=window) for window in (64, 5))
    assert graphs_of(EFTForCausalLM.from_models(base, tuned=wide, reference=base)) == 1
    assert graphs_of(EFTForCausalLM.from_models(base, tuned=narrow, reference=base)) == graphs_of(narrow)


@pytest.mark.parametrize(
    "base_family, tuned_family, padding", [("llama", "qwen3", "one"), ("gemma3", "gpt2", "left"), ("lfm2", "mistral", "left")]
)
def test_static_cache_with_a_compiled_full_graph(base_family: str, tuned_family: str, padding: str) -> None:
    base, tuned, reference, model = trio(base_family, tuned_family)
    # The backend "eager" traces and guards like any other and needs no C++ compiler.
    compiled = CompileConfig(backend="eager", mode=None, fullgraph=True)
    compiled._compile_all_devices = True
    inputs, options = prompts(padding), {"cache_implementation": "static", "compile_config": compiled}
    torch._dynamo.reset()
    got = tokens(model, inputs, **options)
    assert got == tokens(tuned, inputs)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0, "nothing was compiled"
    assert tokens(model, inputs, **options) == got
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a second call was compiled again"
    add_on = EFTLogitsProcessor(tuned, reference, pad_token_id=0)
    assert tokens(base, inputs, logits_processor=[add_on], **options) == got


# torch 2.10 makes NaN of what is beyond the range, 2.13 its largest number: the caches of plain models are NaN there, too.
SATURATES = bool(torch.tensor(1e4).to(torch.float8_e4m3fn).float().isfinite())


@pytest.mark.skipif(not SATURATES, reason="this torch makes NaN of numbers beyond float8's range, in plain models as well")
def test_quantized_cache() -> None:
    _, tuned, _reference, model = trio()
    inputs, options = prompts("left"), {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    out = model.generate(**inputs, max_new_tokens=10, return_dict_in_generate=True, **options)
    assert out.sequences.tolist() == tokens(tuned, inputs, **options)
    assert all(isinstance(cache, QuantizedCache) for cache in cache_of(out).members.values())
    assert all(len(cache) == 2 for cache in cache_of(out).members.values())


def test_quantized_cache_is_refused_by_the_member_that_cannot() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gemma3", 1), reference=shared("llama", 2))
    with pytest.raises(ValueError, match=r"'tuned'.*sliding_attention"):
        tokens(model, prompts("one"), cache_implementation="quantized", cache_config={"backend": "fp8"})


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="transformers offloads caches from an accelerator only")
def test_offloaded_cache() -> None:
    _, tuned, _, model = trio()
    assert tokens(model, prompts("left"), cache_implementation="offloaded") == tokens(tuned, prompts("left"))


def test_offloading_is_passed_on_to_every_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Stream", lambda: None)  # a CUDA build makes none without a GPU, and the CPU needs none
    base, tuned, _, _ = trio()
    cache = DynamicCache(config=base.config, offloading=True)
    EFTCache.attach(cache, {"base": base, "tuned": tuned})
    assert cache.members["tuned"].offloading


@pytest.mark.parametrize("make", ["empty", "config", "static"])
def test_caller_made_caches_are_used_in_place(make: str) -> None:
    base, tuned, _, model = trio("mistral", "gpt2")
    cache = {
        "empty": lambda: DynamicCache(),
        "config": lambda: DynamicCache(config=base.config),
        "static": lambda: StaticCache(config=base.config, max_cache_len=32),
    }[make]()
    inputs = prompts("left")
    got = tokens(model, inputs, cache=cache)
    assert got == tokens(tuned, inputs)
    assert isinstance(cache, EFTCache)
    assert int(cache.get_seq_length()) == len(got[0]) - 1  # the last token is not read


@pytest.mark.parametrize("new_only", [True, False], ids=["new ids only", "full ids"])
@pytest.mark.parametrize("families", [("llama", "gpt2"), ("mistral", "lfm2")], ids="-".join)
def test_continuing_from_a_returned_cache(families: tuple[str, str], new_only: bool) -> None:
    _, tuned, _, model = trio(*families)
    turn = torch.tensor([[5, 9, 11]]).expand(3, 3)
    replies = []
    for which in (tuned, model):
        inputs = prompts("left")
        first = which.generate(**inputs, max_new_tokens=5, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, turn], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, ids.shape[1] - 9, dtype=torch.long)], dim=1)
        read = cache_of(first).get_seq_length()
        second = which.generate(
            ids[:, read:] if new_only else ids, attention_mask=mask, max_new_tokens=6, **{CACHE: cache_of(first)}
        )
        replies.append(second[:, -6:].tolist())
    assert replies[0] == replies[1]


def test_a_copied_cache_serves_many_continuations_of_one_prefix() -> None:
    _, tuned, _, model = trio("llama", "gpt2")
    ids = prompts("one")["input_ids"]
    cache = DynamicCache()
    with torch.no_grad():
        model(ids, cache=cache, use_cache=True)
    for suffix in ([3, 4], [9, 8]):
        full = torch.cat([ids, torch.tensor([suffix])], dim=1)
        got = model.generate(full, cache=copy.deepcopy(cache), max_new_tokens=6)
        assert got.tolist() == tuned.generate(full, max_new_tokens=6).tolist()
    assert cache.get_seq_length() == ids.shape[1]


def test_a_cache_filled_by_another_model_is_refused() -> None:
    base, tuned, _, model = trio()
    ids = prompts("one")["input_ids"]
    filled = cache_of(base.generate(ids, max_new_tokens=3, return_dict_in_generate=True))
    with pytest.raises(ValueError, match="has no states of the members 'tuned', 'reference'"):
        model.generate(torch.cat([ids, ids], 1), cache=filled, max_new_tokens=3)
    other = EFTForCausalLM.from_models(base, tuned=tuned, reference=base)
    returned = cache_of(other.generate(ids, max_new_tokens=3, return_dict_in_generate=True))
    with pytest.raises(ValueError, match=r"holds states of the members \['base', 'tuned'\]"):
        model.generate(torch.cat([ids, ids], 1), cache=returned, max_new_tokens=3)


def test_a_static_cache_without_room_for_a_later_turn_is_refused_by_member() -> None:
    _, _, _, model = trio("mistral", "llama")  # sliding layers only: the main cache does not say how long it was meant to be
    cache = StaticCache(config=model.base.config, max_cache_len=64)
    ids = prompts("one")["input_ids"]
    first = model.generate(ids, cache=cache, max_new_tokens=4)
    with pytest.raises(ValueError, match="The static cache of the member 'tuned' holds 9 tokens, but this call needs 18"):
        model.generate(torch.cat([first, first[:, -3:]], 1), cache=cache, max_new_tokens=6)


def test_structure_reaches_every_member() -> None:
    base, tuned, reference, _ = trio("llama", "gpt2")
    models = {"base": base, "tuned": tuned, "reference": reference}
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    ids = prompts("even")["input_ids"]
    with torch.no_grad():
        cache = cache_of(model(ids, use_cache=True))

    def keys() -> list[torch.Tensor]:
        return [member.layers[0].keys.clone() for member in cache.members.values()]

    before = keys()
    cache.reorder_cache(torch.tensor([1, 0]))
    assert all(torch.equal(a.flip(0), b) for a, b in zip(before, keys(), strict=True))
    cache.batch_repeat_interleave(2)
    assert all(b.shape[0] == 4 for b in keys())
    cache.batch_select_indices(torch.tensor([2]))
    assert all(torch.equal(a[:1], b) for a, b in zip(before, keys(), strict=True))
    assert cache.unsettled_tokens == ids.shape[1]
    cache.crop(-2)
    assert cache.unsettled_tokens == 0
    assert all(b.shape[-2] == ids.shape[1] - 2 for b in keys())
    assert cache.is_croppable and not cache.is_compileable
    cache.reset()
    assert all(member.get_seq_length() == 0 for member in cache.members.values())
    assert (cache.seen_tokens, cache.unsettled_tokens) == (0, 0)
    assert list(cache.members) == list(models)


def test_recurrent_states_are_taken_back_only_where_they_are_marked() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("mamba", 1), reference=shared("mamba", 2))
    with torch.no_grad():
        cache = cache_of(model(prompts("even")["input_ids"], use_cache=True))
    assert not cache.can_crop(1)
    assert cache.can_crop(1, marked=True)


def test_windows_are_taken_back_as_far_as_they_recorded() -> None:
    base, _, _, model = trio("mistral", "gpt2")
    ids = prompts("even")["input_ids"]
    assert ids.shape[1] > base.config.sliding_window
    cache = model._members.new_cache()
    with torch.no_grad():
        model(ids, use_cache=True, **{CACHE: cache})
    assert not cache.can_crop(1)  # they have not recorded what falls in again
    cache.reset()
    cache.activate_past_recording()
    with torch.no_grad():
        model(ids, use_cache=True, **{CACHE: cache})
    assert [cache.can_crop(tokens) for tokens in (0, 1, 6, 7)] == [True, True, True, False]


def test_members_that_share_a_model_share_a_cache() -> None:
    base, tuned, _, _ = trio()
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=base)
    out = model.generate(**prompts("left"), max_new_tokens=4, return_dict_in_generate=True)
    assert list(cache_of(out).members) == ["base", "tuned"]
