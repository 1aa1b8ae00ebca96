"""Every option of `generate` is heeded by a batch, or refused by name with where it comes from, or cannot matter in it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from typing import Any

import pytest
import torch
from families import EOS, PAD, build, shared
from paged import PROMPTS, batched, config, greedy, one_by_one, shared_base, three
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig, GenerationMixin, WatermarkingConfig

from hf_eft import EFTForCausalLM
from hf_eft.decoding.continuous.limits import _FOR_ONE_MODEL
from hf_eft.decoding.continuous.options import HEEDED, REFUSED, WITHOUT_EFFECT

# What a batch cannot have, as somebody would ask for it.
WANTED: dict[str, Any] = {
    "assistant_early_exit": 1,
    "bad_words_ids": [[5]],
    "begin_suppress_tokens": [5],
    "cache_config": {"nbits": 4},
    "cache_implementation": "static",
    "compile_config": CompileConfig(),
    "constraints": ["one"],
    "dola_layers": "low",
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.5,
    "exponential_decay_length_penalty": (3, 1.5),
    "force_words_ids": [[5]],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 2,
    "guidance_scale": 1.5,
    "is_assistant": True,
    "max_cache_len": 64,
    "max_time": 10.0,
    "min_length": 30,
    "min_new_tokens": 18,
    "no_repeat_ngram_size": 2,
    "num_beam_groups": 2,
    "num_beams": 2,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_logits": True,
    "output_scores": True,
    "penalty_alpha": 0.5,
    "prefill_chunk_size": 4,
    "prompt_lookup_num_tokens": 3,
    "repetition_penalty": 1.5,
    "return_dict_in_generate": True,
    "sequence_bias": {(5,): 2.0},
    "stop_strings": ["a"],
    "token_healing": True,
    "use_mtp": True,
    "watermarking_config": WatermarkingConfig(),
}


def own_config(**options: Any) -> EFTForCausalLM:
    """A model whose tuned member's configuration, and so its own, has these options."""
    tuned = build("llama", 2)
    for name, value in options.items():
        setattr(tuned.generation_config, name, value)
    return EFTForCausalLM.from_models(shared_base(), tuned, shared("llama", 3))


def test_every_option_of_the_installed_release_is_in_one_table() -> None:
    tables = [HEEDED, WITHOUT_EFFECT, set(REFUSED)]
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert set().union(*tables) == fields
    assert sum(map(len, tables)) == len(fields)
    assert WANTED.keys() == REFUSED.keys()
    heeded = {
        "page_size", "num_blocks", "max_batch_tokens", "max_memory_percent", "max_requests_per_batch", "allow_block_sharing",
        "scheduler_type", "safety_margin", "return_logprobs", "seed", "auto_switch_to_flash", "cpu_offload_space",
        "cpu_offload_space_safety_threshold", "max_queue_size", "per_request_processors", "drop_unsupported_processors",
        "disable_nccl_graph_mixing", "cpu_group_timeout",
    }  # fmt: skip
    others = {
        "use_default_compile_configs",
        "max_cached_graphs",
        "block_size",
    }  # deprecated: transformers says so, or takes them over
    assert heeded | others | _FOR_ONE_MODEL.keys() == {each.name for each in dataclasses.fields(ContinuousBatchingConfig)}


@pytest.mark.parametrize("name", WANTED)
def test_what_a_batch_cannot_have_is_refused_by_name_and_place(name: str) -> None:
    model, value = three(), WANTED[name]
    asked = greedy()
    setattr(asked, name, value)  # not all of them are values that transformers takes
    with pytest.raises(NotImplementedError, match=f"`{name}` of the `generation_config` that was given is"):
        model.generate_batch(PROMPTS[:1], asked, config())
    with pytest.raises(NotImplementedError, match=f"`{name}` of the `generation_config` that was given is"):
        model.init_continuous_batching(asked, config())
    model = own_config(**{name: value})
    with pytest.raises(
        NotImplementedError, match=f"`{name}` is .* in the model's own `generation_config`, as in .* 'tuned'"
    ) as told:
        model.generate_batch(PROMPTS[:1], GenerationConfig(max_new_tokens=3, eos_token_id=EOS), config())
    assert f"Set `model.generation_config.{name} = {REFUSED[name][0]!r}`" in str(told.value)
    setattr(model.generation_config, name, REFUSED[name][0])
    assert batched(model, PROMPTS[:1], greedy(3)) == one_by_one(three(), PROMPTS[:1], greedy(3))


@pytest.mark.parametrize("name", ["min_new_tokens", "no_repeat_ngram_size", "sequence_bias", "stop_strings", "output_scores"])
def test_keywords_are_refused_by_name(name: str) -> None:
    model = three()
    with pytest.raises(NotImplementedError, match=f"`{name}` of this call is"):
        batched(model, PROMPTS[:1], greedy(), **{name: WANTED[name]})
    ids = torch.tensor(PROMPTS[:1])
    with pytest.raises(NotImplementedError, match=f"`{name}` of this call is"):
        model.generate(ids, max_new_tokens=3, cache_implementation="paged", **{name: WANTED[name]})


def test_an_option_that_asks_for_nothing_is_no_option() -> None:
    model = own_config(min_new_tokens=5, repetition_penalty=1.5)
    neutral = {"min_new_tokens": None, "repetition_penalty": 1.0, "num_beams": 1, "output_scores": False, "guidance_scale": 1.0}
    expected = one_by_one(three(), PROMPTS[:2], greedy())
    assert batched(model, PROMPTS[:2], greedy(), **neutral) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"suppress_tokens": list(range(5, 40))},
        {"max_length": 24, "max_new_tokens": None},
        {"eos_token_id": list(range(3, 30))},
        {"renormalize_logits": True, "remove_invalid_values": True},
        *({"do_sample": True, **one} for one in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}, {"min_p": 1.0})),
        *(
            {"do_sample": True, **one}
            for one in (
                {"epsilon_cutoff": 0.999},
                {"eta_cutoff": 0.999, "temperature": 1e-4},
                {"typical_p": 1e-6},
                {"top_h": 1e-6},
            )
        ),
    ],
    ids=str,
)
def test_options_are_heeded(options: dict[str, Any]) -> None:
    """Those of sampling at values that leave one token to choose."""
    model, inputs = three(), PROMPTS[:4]
    expected = one_by_one(model, inputs, greedy(**options))
    assert batched(model, inputs, greedy(**options)) == expected
    assert batched(model, inputs, greedy(), **options) == expected
    rest = {key: value for key, value in options.items() if value is not None}
    kept = {"eos_token_id": EOS, "pad_token_id": PAD}
    bare = GenerationConfig(**({} if "max_length" in options else {"max_new_tokens": 10}))
    assert batched(own_config(**{**kept, **rest}), inputs, bare) == expected


def test_options_without_effect_have_none() -> None:
    values = {
        "assistant_confidence_threshold": 0.2, "assistant_lookbehind": 5, "disable_compile": True, "early_stopping": False,
        "length_penalty": 1.0, "num_assistant_tokens": 3, "pad_token_id": 9, "use_cache": False,
    }  # fmt: skip
    model = three()
    assert batched(model, PROMPTS[:3], greedy(**values)) == one_by_one(model, PROMPTS[:3], greedy(**values))


def test_what_a_call_leaves_open_is_the_models() -> None:
    model = own_config(do_sample=True, top_k=1, eos_token_id=list(range(3, 40)))
    bare = GenerationConfig(max_new_tokens=10)
    expected = one_by_one(model, PROMPTS[:3], bare)
    assert batched(model, PROMPTS[:3], bare) == expected
    assert expected != one_by_one(three(), PROMPTS[:3], greedy())
    assert (bare.do_sample, bare.eos_token_id) == (None, None)


def test_names_that_are_no_options_are_refused() -> None:
    model = three()
    with pytest.raises(ValueError, match=r"no option `temprature`.*`temperature`"):
        batched(model, PROMPTS[:1], greedy(), temprature=3.0)
    with pytest.raises(ValueError, match=r"no option `temprature`.*`temperature`"):
        batched(model, PROMPTS[:1], greedy(temprature=3.0))
    with pytest.raises(ValueError, match=r"no option `temprature`.*`temperature`"):
        model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=3, cache_implementation="paged", temprature=3.0)
    with pytest.raises(ValueError, match="no option `zzz`"):
        batched(model, [], greedy(), zzz=None)
    model = own_config(chat_format="chatml")  # what checkpoints come with, `generate` passes over as well
    assert batched(model, PROMPTS[:1], greedy(3)) == one_by_one(model, PROMPTS[:1], greedy(3))


def test_no_argument_of_generate_is_left_out() -> None:
    model, ids = three(), torch.tensor(PROMPTS[:1])
    paged: dict[str, Any] = {"cache_implementation": "paged", "max_new_tokens": 3, "continuous_batching_config": config()}
    known = {"self", "inputs", "generation_config", "custom_generate", "kwargs"}
    known |= {"input_ids", "attention_mask", "coefficients", "member_inputs", "use_cache", "cache", "past_key_values"}
    names = {*inspect.signature(GenerationMixin.generate).parameters, *inspect.signature(model.forward).parameters} - known
    for name in [*names, "cache", "token_type_ids"]:
        with pytest.raises((NotImplementedError, ValueError), match=f"`{name}`|`past_key_values`"):
            model.generate(ids, **paged, **{name: torch.ones(1, 2)})
    nothing = {"logits_processor": [], "streamer": None, "synced_gpus": False, "tokenizer": None, "use_cache": True}
    answer = model.generate(ids, **paged, **nothing, attention_mask=torch.ones_like(ids))
    assert answer[0].tolist() == model.generate(ids, max_new_tokens=3).tolist()


def test_paged_rows_end_where_they_end() -> None:
    model = three()
    ids = torch.tensor([PROMPTS[2], PROMPTS[1][:6], PROMPTS[3][:6]])
    asked = greedy(12, eos_token_id=list(range(3, 10)))
    answer = model.generate(ids, asked, cache_implementation="paged", continuous_batching_config=config())
    expected = model.generate(ids, asked)
    assert answer[0].tolist() == expected.tolist()
    assert (expected == PAD).any()
    asked.cache_implementation = "paged"  # said elsewhere
    asked.continuous_batching_config = config()
    assert model.generate(ids, asked)[0].tolist() == expected.tolist()


def test_a_kept_manager_is_not_used_for_another_wish() -> None:
    model = three()
    expected = one_by_one(model, PROMPTS[:2], greedy())
    assert batched(model, PROMPTS[:2], greedy(), persistent_manager=True) == expected
    for options in ({"do_sample": True}, {"eos_token_id": 5}, {"suppress_tokens": [5]}):
        with pytest.raises(ValueError, match=f"another `{next(iter(options))}`"):
            batched(model, PROMPTS[:2], greedy(**options), persistent_manager=True)
    with pytest.raises(ValueError, match="another `continuous_batching_config`"):
        batched(model, PROMPTS[:2], greedy(), batching=config(page_size=16), persistent_manager=True)
    outputs = model.generate_batch(PROMPTS[:2], persistent_manager=True)  # nothing asked for
    assert [output.generated_tokens for output in outputs.values()] == expected
    shorter = batched(model, PROMPTS[:2], greedy(4), persistent_manager=True)
    assert shorter == [tokens[:4] for tokens in expected]
    model.tuned.train()
    try:
        with pytest.raises(ValueError, match="'tuned' is in training mode"):
            batched(model, PROMPTS[:2], greedy())
    finally:
        model.tuned.eval()
    model.destroy_cached_continuous_batching_manager()


def test_options_of_a_request_are_checked_when_it_comes() -> None:
    model = three()
    sampled = greedy(do_sample=True, temperature=0.5, top_k=2, top_p=0.9)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"temperature": 0.0}, ValueError, "positive"),
        ({"top_p": 1.5}, ValueError, "at most 1"),
        ({"top_k": -1}, ValueError, "0, for all tokens"),
        ({"top_k": 1.5}, TypeError, "int"),
        ({"temprature": 1.0}, ValueError, "cannot have `temprature`"),
        ({"min_tokens_to_keep": 3}, ValueError, "cannot have `min_tokens_to_keep`"),
    ]
    batching = config(per_request_processors=True)
    with model.continuous_batching_context_manager(sampled, continuous_batching_config=batching) as manager:
        for options, kind, reason in wrong:
            with pytest.raises(kind, match=reason):
                manager.add_request(PROMPTS[0], **options)
        manager.add_request(PROMPTS[0], request_id="a", top_k=1, temperature=2)
        with pytest.raises(ValueError, match="'a' waits for its answer"):
            manager.add_request(PROMPTS[1], request_id="a")
        assert manager.get_result(timeout=60).generated_tokens == one_by_one(model, PROMPTS[:1], greedy())[0]
        manager.add_request(PROMPTS[0], request_id="a", top_k=10**6, temperature=1e-4, top_p=1.0)  # more than there are tokens
        assert manager.get_result(timeout=60).generated_tokens == one_by_one(model, PROMPTS[:1], greedy())[0]
    manager = model.init_continuous_batching(greedy(), config())
    with pytest.raises(ValueError, match=r"cannot have `temperature`.*per_request_processors"):
        manager.add_request(PROMPTS[0], temperature=0.5)


@pytest.mark.parametrize("kept", [False, True], ids=["once", "kept"])
def test_inference_mode_of_the_caller_does_not_matter(kept: bool) -> None:
    model = three()
    expected = one_by_one(model, PROMPTS[:3], greedy())
    with torch.inference_mode():
        assert batched(model, PROMPTS[:3], greedy(), persistent_manager=kept) == expected
    assert batched(model, PROMPTS[:3], greedy(), persistent_manager=kept) == expected
    with torch.inference_mode():
        assert batched(model, PROMPTS[:3], greedy()) == expected
    model.destroy_cached_continuous_batching_manager()


def test_the_configurations_of_a_call_are_left_as_they_are() -> None:
    model, asked, batching = three(), greedy(), config()
    before = copy.deepcopy((asked.to_dict(), vars(batching), model.generation_config.to_dict()))
    batched(model, PROMPTS[:1], asked, batching=batching, max_new_tokens=3)
    assert (asked.to_dict(), vars(batching), model.generation_config.to_dict()) == before
