"""Recurrent members with every cache that a caller may ask for or make, and prompts read in pieces: against the stateless oracle."""

from __future__ import annotations

import copy
import functools
from typing import Any

import oracle
import pytest
import torch
from families import build, prompts
from transformers import AutoConfig, AutoModelForCausalLM, CompileConfig, DynamicCache, GenerationConfig, StaticCache

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.releases import CACHE

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
}
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "jamba": {
        **_SIZES,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
        "mamba_d_conv": 3,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "qwen3_next": {
        **_SIZES,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "falcon_h1": {
        **_SIZES,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "lfm2": {**_SIZES, "block_ff_dim": 48, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
}
CACHES: dict[str, Any] = {
    "static": lambda config: {"cache_implementation": "static"},
    "StaticCache(config)": lambda config: {CACHE: StaticCache(config=config, max_cache_len=40)},
    "DynamicCache()": lambda config: {CACHE: DynamicCache()},
    "DynamicCache(config)": lambda config: {CACHE: DynamicCache(config=config)},
    "pieces of 4": lambda config: {"prefill_chunk_size": 4},
    "pieces of 1": lambda config: {"prefill_chunk_size": 1},
    "no cache": lambda config: {"use_cache": False},
}
COEFFICIENTS = {"base": 1.0, "tuned": 1.0, "reference": -1.0}


@functools.cache
def small(kind: str, seed: int) -> Any:
    if kind == "llama":
        return build("llama", seed)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in name:
                parameter.normal_(0, 0.5 if "emb" in name else 0.3, generator=generator)
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return model


def members(first: str, others: str) -> dict[str, Any]:
    return {"base": small(first, 0), "tuned": small(others, 1), "reference": small(others, 2)}


@functools.cache
def expected(first: str, others: str, padding: str, count: int = 7) -> list[list[int]]:
    """Greedy decoding of the formula, every row read anew for every token."""
    ids, mask = prompts(padding).values()
    ended = torch.zeros(len(ids), dtype=torch.bool)
    while count and not ended.all():
        best = oracle.rows(members(first, others), COEFFICIENTS, ids, mask).argmax(-1).masked_fill(ended, 0)
        ended, count = ended | (best == 2), count - 1
        ids, mask = torch.cat([ids, best[:, None]], 1), torch.cat([mask, torch.ones_like(best)[:, None]], 1)
    return ids.tolist()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["base", "tuned and reference"])
def test_the_wrapper_is_exact(place: str, kind: str, cache: str) -> None:
    pair = (kind, "llama") if place == "base" else ("llama", kind)
    models = members(*pair)
    model = EFTForCausalLM.from_models(models["base"], tuned=models["tuned"], reference=models["reference"])
    options = CACHES[cache](models["base"].config)
    assert model.generate(**prompts("left"), max_new_tokens=7, **options).tolist() == expected(*pair, "left")


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_add_on_is_exact(kind: str, cache: str) -> None:
    models, inputs = members("llama", kind), prompts("left")
    add_on = EFTLogitsProcessor(models["tuned"], models["reference"], attention_mask=inputs["attention_mask"])
    options = CACHES[cache](models["base"].config)
    got = models["base"].generate(**inputs, max_new_tokens=7, logits_processor=[add_on], **options)
    assert got.tolist() == expected("llama", kind, "left")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_state_space_members_alone(kind: str, compiled: bool) -> None:
    """No member counts tokens, and the static cache is gone on from."""
    tuned, base = small(kind, 1), small(kind, 0)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=copy.deepcopy(base))
    inputs, cache, options = prompts("left"), StaticCache(config=base.config, max_cache_len=40), {}
    if compiled:
        options = {"compile_config": CompileConfig(backend="eager", mode=None, fullgraph=True)}
        options["compile_config"]._compile_all_devices = True
    first = model.generate(**inputs, max_new_tokens=5, **{CACHE: cache}, **options)
    assert first.tolist() == tuned.generate(**inputs, max_new_tokens=5).tolist()
    ids = torch.cat([first, torch.tensor([[5, 9, 11]]).expand(3, 3)], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, ids.shape[1] - 9, dtype=torch.long)], dim=1)
    assert cache.get_seq_length() == first.shape[1] - 1
    second = model.generate(ids, attention_mask=mask, max_new_tokens=5, **{CACHE: cache}, **options)
    assert second.tolist() == tuned.generate(ids, attention_mask=mask, max_new_tokens=5).tolist()


@pytest.mark.parametrize("kind", ["mamba2", "jamba"])
def test_rows_of_padding_one_by_one(kind: str) -> None:
    """The caller's own loop, a token at a time, over a batch that begins with padding."""
    models, (ids, mask) = members("llama", kind), prompts("left").values()
    model = EFTForCausalLM.from_models(models["base"], tuned=models["tuned"], reference=models["reference"])
    cache, positions = DynamicCache(), (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        for i in range(ids.shape[1]):
            step = {"attention_mask": mask[:, : i + 1], "position_ids": positions[:, i : i + 1], CACHE: cache}
            out = model(ids[:, i : i + 1], use_cache=True, **step)
    torch.testing.assert_close(
        out.logits[:, -1].log_softmax(-1).double(), oracle.rows(models, COEFFICIENTS, ids, mask), atol=1e-4, rtol=0
    )
