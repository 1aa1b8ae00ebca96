"""What continuous batching would not do exactly is refused, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import families
import pytest
import torch
from families import VOCAB, build, shared
from paged import PROMPTS, batched, config, greedy, one_by_one, shared_base, three
from transformers import GenerationConfig

from hf_eft import Combination, EFTForCausalLM


def refused(model: EFTForCausalLM, match: str, generation: GenerationConfig | None = None, **options: Any) -> None:
    with pytest.raises(NotImplementedError, match=match):
        batched(model, PROMPTS[:2], greedy() if generation is None else generation, **options)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("mamba", "'tuned'.*not paged"), ("lfm2", "'tuned'.*conv"), ("falcon", "'tuned'.*attention of its own")],
)
def test_members_whose_states_are_not_paged_are_refused(family: str, reason: str) -> None:
    refused(three(family), reason)


def test_layers_that_attend_otherwise_are_refused() -> None:
    tuned = build(
        "llama", 2, model_type="llama4_text", layer_types=["chunked_attention", "full_attention"], attention_chunk_size=8
    )
    assert not getattr(tuned, "_is_stateful", False)
    refused(EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3)), "'tuned'.*chunked_attention layers")


def test_heads_of_several_sizes_are_refused() -> None:
    sizes = families.FAMILIES["llama"] | {
        "model_type": "gemma4_text", "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"],
        "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCAB,
    }  # fmt: skip
    refused(
        EFTForCausalLM.from_models(shared_base(), build("llama", 2, **sizes), shared("llama", 3)), "'tuned'.*of different sizes"
    )


def test_other_attentions_are_refused() -> None:
    tuned = build("llama", 2)
    tuned.set_attn_implementation("eager")
    model = EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))
    refused(model, "'tuned' uses the attention 'eager'")
    tuned.set_attn_implementation("paged|eager")
    answers = batched(model, PROMPTS, greedy())
    tuned.set_attn_implementation("sdpa")
    assert answers == one_by_one(model, PROMPTS, greedy())


def test_members_in_training_mode_are_refused() -> None:
    tuned = build("llama", 2).train()
    model = EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))
    with pytest.raises(ValueError, match="'tuned' is in training mode"):
        batched(model, PROMPTS, greedy())


def test_members_on_other_devices_are_refused() -> None:
    model = EFTForCausalLM.from_models(shared_base(), build("llama", 2).to("meta"), shared("llama", 3))
    refused(model, "'tuned' is on meta")


def test_schedules_are_refused() -> None:
    refused(three(combination=Combination.emulate(alpha=[1.0, 0.5])), "schedule")


@pytest.mark.parametrize(
    "options",
    [
        {"use_async_batching": True},
        {"use_cuda_graph": True},
        {"use_cuda_graph": (False, True)},
        {"default_compile_level": 1},
        {"max_blocks_per_request": 8},
        {"q_padding_interval_size": 64},
    ],
    ids=str,
)
def test_what_is_for_one_model_is_refused(options: dict[str, Any]) -> None:
    refused(three(), next(iter(options)), batching=config(**options))


def test_arguments_of_generate_that_would_be_left_out_are_refused() -> None:
    model = three()
    inputs = families.prompts("left")
    paged: dict[str, Any] = {"cache_implementation": "paged", "max_new_tokens": 3}
    with pytest.raises(ValueError, match="not padded"):
        model.generate(**inputs, **paged)
    ids = inputs["input_ids"][:1, -2:]
    with pytest.raises(NotImplementedError, match="member_inputs"):
        own = {"tuned": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
        model.generate(ids, member_inputs=own, **paged)
    with pytest.raises(NotImplementedError, match="seed"):
        model.generate(ids, coupling="match", seed=1, **paged)
    with pytest.raises(NotImplementedError, match="position_ids"):
        model.generate(ids, position_ids=torch.tensor([[3, 4]]), **paged)


@pytest.mark.parametrize(
    ("inputs", "options", "reason"),
    [
        ([[5, 6], []], {}, "no tokens"),
        ([[5, VOCAB]], {}, "from 0 to 63"),
        ([[5, -1]], {}, "from 0 to 63"),
        ([[5] * 60], {"batching": config(num_blocks=4)}, "tokens of the cache"),
        ([[5] * 120], {}, "128 positions of the member 'base'"),
        ([[5]], {"max_new_tokens": 0}, "greater than 0"),
        ([[5]], {"max_new_tokens": None, "generation": greedy(max_new_tokens=None, max_length=1)}, "must be 1 or more"),
        ([[5]], {"batching": config(scheduler_type="lifo")}, "no scheduler 'lifo'"),
        ([[5]], {"coefficients": torch.ones(1, 2)}, "for each of"),
        ([[5]], {"coefficients": torch.tensor([[1.0, float("nan"), 0.0]])}, "finite"),
        ([[5]], {"coefficients": torch.ones(2, 3)}, "a row for each of 1 prompts"),
        ([[5]], {"max_new_tokens": None, "generation": greedy(max_new_tokens=None)}, "max_new_tokens"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_served_are_refused(inputs: list[list[int]], options: dict[str, Any], reason: str) -> None:
    model = three()
    with pytest.raises(ValueError, match=reason):
        batched(model, inputs, options.pop("generation", greedy()), **options)
    assert batched(model, PROMPTS[:2], greedy()) == one_by_one(model, PROMPTS[:2], greedy())


def test_a_layer_that_does_not_page_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    attention = model.tuned.model.layers[1].self_attn
    forward = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args, cache=None, **kwargs: forward(*args, **kwargs))
    refused(model, "1 layers of the member 'tuned' do not use the paged cache")


def test_a_member_that_asks_its_cache_for_more_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EFTForCausalLM.from_models(shared_base(), tuned := build("llama", 2), shared("llama", 3))
    forward = tuned.model.layers[0].self_attn.forward

    def curious(*args: Any, cache: Any = None, **kwargs: Any) -> Any:
        assert getattr(cache, "is_sliding", None) is None  # as far as it can do without, it may ask
        return cache.layers

    monkeypatch.setattr(tuned.model.layers[0].self_attn, "forward", curious)
    refused(model, "'tuned' asks its cache for `layers`")
    monkeypatch.setattr(tuned.model.layers[0].self_attn, "forward", forward)


def test_members_without_positions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = three()
    member = model._members.distinct["tuned"]
    monkeypatch.setitem(
        model._members.distinct, "tuned", dataclasses.replace(member, accepts=member.accepts - {"position_ids"})
    )
    refused(model, "'tuned'.*takes no `position_ids`")


def test_states_of_another_shape_are_noticed() -> None:
    tuned = build("llama", 2)
    model = EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))
    tuned.config.num_key_value_heads = 4  # what a layer of another width looks like
    refused(model, "Layer 0 of the member 'tuned'")


def test_logits_that_are_no_numbers_are_raised() -> None:
    tuned = build("llama", 2)
    with torch.no_grad():
        tuned.lm_head.weight[5] = float("nan")
    model = EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))
    with pytest.raises(FloatingPointError, match="'tuned'"):
        batched(model, PROMPTS[:2], greedy())
