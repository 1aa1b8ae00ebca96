"""The shared table: model families, decoding strategies, paddings. Models are built from configs, with weights that matter."""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# `SEED=1 make test` gives every model other weights and every prompt other tokens: no test passes by the luck of one.
SEED = int(os.environ.get("SEED", "0"))
_APART = 1000 * SEED  # further than the seeds that tests name are from each other

VOCAB = 64
PAD, BOS, EOS = 0, 1, 2

_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "head_dim": 8,
}

# Each family is here for a property: what its cache or its positions do.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_SIZES},
    "qwen3": {"model_type": "qwen3", **_SIZES},
    "mistral": {"model_type": "mistral", **_SIZES, "sliding_window": 5},
    "gemma3": {
        "model_type": "gemma3_text",
        **_SIZES,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 32,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
    },
    "falcon": {
        "model_type": "falcon",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "alibi": True,
    },
    "mixtral": {"model_type": "mixtral", **_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {
        "model_type": "lfm2",
        **_SIZES,
        "block_ff_dim": 48,
        "layer_types": ["conv", "full_attention"],
        "conv_L_cache": 3,
    },
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
}
STATEFUL = {"mamba"}
# With recurrent states, alone, beside attention layers or within them. (Without experts: grouped ones take no float64.)
_DELTA = {
    **_SIZES, "linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_MAMBA2 = {"mamba_d_state": 8, "mamba_d_head": 8, "mamba_chunk_size": 4}
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": FAMILIES["mamba"],
    "mamba2": {
        "model_type": "mamba2", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8,
        "n_groups": 2, "chunk_size": 4,
    },
    "jamba": {
        "model_type": "jamba", **_SIZES, "attn_layer_offset": 1, "attn_layer_period": 2, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "num_experts": 1, "num_experts_per_tok": 1,
    },
    "bamba": {"model_type": "bamba", **_SIZES, **_MAMBA2, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_n_groups": 2},
    "falcon_h1": {"model_type": "falcon_h1", **_SIZES, **_MAMBA2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_n_groups": 1},
    "qwen3_5": {"model_type": "qwen3_5_text", **_DELTA},
    "olmo_hybrid": {"model_type": "olmo_hybrid", **_DELTA},
}  # fmt: skip
WINDOWED = {"mistral", "gemma3", "lfm2"}


def build(family: str, seed: int, **overrides: Any) -> Any:
    """A model whose distribution is far from uniform and far from that of another seed."""
    options = {**RECURRENT, **FAMILIES}[family] | _COMMON | overrides
    torch.manual_seed(seed + _APART)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**options)).eval()
    generator = torch.Generator().manual_seed(seed + _APART)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in name:
                parameter.normal_(0, 0.5 if "emb" in name or "wte" in name else 0.3, generator=generator)
    # A generation config made from a model config says so, and `generate` would then look at the model config again.
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=options["pad_token_id"], bos_token_id=BOS, eos_token_id=options["eos_token_id"]
    )
    return model


#: What tests share, by name, with the settings of `generate` that it was made with: the model, and those.
SHARED: dict[str, tuple[Any, dict[str, Any]]] = {}


def remember(name: str, model: Any) -> Any:
    """Have the end of every module of tests look whether this model is as it was."""
    SHARED[name] = model, copy.deepcopy(vars(model.generation_config))
    return model


def changed() -> dict[str, Any]:
    """By shared model the settings that some test has changed, which are put back."""
    found = {}
    for name, (model, settings) in SHARED.items():
        now = vars(model.generation_config)
        if told := {key: now.get(key) for key in {*now, *settings} if now.get(key) != settings.get(key)}:
            found[name] = told
            model.generation_config = copy.deepcopy(model.generation_config)
            vars(model.generation_config).clear()
            vars(model.generation_config).update(copy.deepcopy(settings))
    return found


@functools.cache
def shared(family: str, seed: int) -> Any:
    """Like `build`, made once: for tests that leave the model as it is."""
    return remember(f"{family} {seed}", build(family, seed))


def prompts(padding: str) -> dict[str, torch.Tensor]:
    """
    `"one"`: a row. `"even"`: rows of one length. `"left"`: rows padded on the left, one of which is as long as the window
    of the sliding families is short.
    """
    generator = torch.Generator().manual_seed(7 + _APART)
    lengths = {"one": [6], "even": [6, 6], "left": [2, 9, 6]}[padding]
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, longest - length :] = 1
    return {"input_ids": ids, "attention_mask": mask}


_SAMPLE: dict[str, Any] = {"do_sample": True}
_BEAM: dict[str, Any] = {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True}

# Options of `generate`. Those of the second table act on the base before an add-on sees the scores, so that the processor's
# identity does not hold for them (its docstring says so).
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {**_SAMPLE, "temperature": 0.8},
    "top_k": {**_SAMPLE, "top_k": 8},
    "top_p": {**_SAMPLE, "top_p": 0.8},
    "min_p": {**_SAMPLE, "min_p": 0.05},
    "typical": {**_SAMPLE, "typical_p": 0.8},
    "eta": {**_SAMPLE, "eta_cutoff": 0.01},
    "epsilon": {**_SAMPLE, "epsilon_cutoff": 0.01},
    "num_return_sequences": {**_SAMPLE, "num_return_sequences": 3},
    "beam": _BEAM,
    "beam_long": {**_BEAM, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2},
    "beam_short": {**_BEAM, "length_penalty": -1.0, "early_stopping": "never"},
    "beam_sample": {**_BEAM, **_SAMPLE, "temperature": 1.3},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[3], [4, 5], [10]]},
    "min_length": {"min_new_tokens": 8},
    "forced_eos": {"forced_eos_token_id": EOS},
    "suppress": {"suppress_tokens": [5, 6, 7, 8]},
    "renormalize": {**_SAMPLE, "top_k": 5, "renormalize_logits": True},
    "static": {"cache_implementation": "static"},
    "chunked_prefill": {"prefill_chunk_size": 4},
    "no_cache": {"use_cache": False},
}
ON_THE_BASE_FIRST: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "sequence_bias": {"sequence_bias": [[[7], 2.5], [[9, 11], -3.0]]},
    "guidance": {"guidance_scale": 1.5},
}
# One row at a time.
ASSISTED: dict[str, dict[str, Any]] = {
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {},
    "assisted_sample": {**_SAMPLE, "temperature": 0.7},
}


def options_for(strategy: str, new_tokens: int = 10) -> dict[str, Any]:
    chosen = {**STRATEGIES, **ON_THE_BASE_FIRST, **ASSISTED}[strategy]
    return {"max_new_tokens": new_tokens, **chosen}


def tokenizer(offset: int = 0) -> PreTrainedTokenizerFast:
    """Word-level, `w3`...; with an offset the same words have other ids."""
    vocab = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    vocab |= {f"w{3 + (i + offset) % (VOCAB - 3)}": 3 + i for i in range(VOCAB - 3)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def lora(model: Any, names: tuple[str, ...] = ("default",), **options: Any) -> Any:
    """A `PeftModel` with an adapter of each name, which matters."""
    import peft  # takes a second, and most tests have no use for it

    chosen = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **options}
    first, *others = names
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **chosen), adapter_name=first)
    for name in others:
        adapted.add_adapter(name, peft.LoraConfig(task_type="CAUSAL_LM", **chosen))
    return adapted.eval()
