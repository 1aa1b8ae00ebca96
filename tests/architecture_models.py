"""A tiny model of any type that transformers maps to a causal language model: configurations shrunk by what their fields are called."""

from __future__ import annotations

import re
import warnings
from typing import Any

import architecture_tower  # noqa: F401  # so that Gemma 3n can be made
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB = 96
PAD, BOS, EOS = 0, 1, 2
WIDTH, HEADS, KV_HEADS, HEAD, INNER, LAYERS, EXPERTS, WINDOW, POSITIONS = 32, 4, 2, 8, 64, 2, 4, 5, 128

_DEPTH = r"(n|num|decoder|encoder)_(hidden_|encoder_|decoder_)?layers?|num_layers_per_stack|depth|num_blocks"
_NOT_FIELDS = {"model_type", "transformers_version", "architectures", "dtype", "per_layer_config"}

# What a field is, by its name: the first pattern that fits the whole name decides. A whole number takes the value; what is zero stays zero.
RULES: list[tuple[str, Any]] = [
    (r"(shape_|pronunciation_|decoder_)?vocab_size|unpadded_vocab_size|vocab_size_per_layer_input", VOCAB),
    (r"pad_token_id|pad_index", PAD),
    (r"bos_token_id|bos_index|decoder_start_token_id|cls_token_id", BOS),
    (r"eos_token_id|eos_index|sep_token_id|forced_eos_token_id", EOS),
    (r"(image|video|audio|bo[ia]|eo[ia]|vision_start|vision_end)_token_(id|index)", VOCAB - 1),
    (
        r"hidden_size|d_model|n_embd|emb_dim|embedding_(size|dim)|word_embed_proj_dim|hidden_size_global|backbone_hidden_size",
        WIDTH,
    ),
    (
        r"(in|out)put_embedding_size|(shape_|pronunciation_)?embed_dim|attention_hidden_size|lru_width|encoder_hidden_size|out_hidden_size",
        WIDTH,
    ),
    (_DEPTH, LAYERS),
    (
        r"(num|n|swa_num|linear_num|encoder|decoder|num_encoder|num_decoder)_(attention_)?heads?|attention_heads|num_query_groups",
        HEADS,
    ),
    (r"(linear_num_(key|value)|index_n|n_mamba)_heads", HEADS),
    (r"mamba_(n|num)_heads", 2 * WIDTH // HEAD),  # twice the width, in heads
    (r"((swa_)?num_key_value|kv_n|num_kv)_heads", KV_HEADS),
    (
        r"((swa_|linear_|mamba_|linear_key_|linear_value_|qk_(rope|nope)_|v_|index_)?head_dim|dim_head|d_head|d_kv|rotary_dim)",
        HEAD,
    ),
    (r"(attention_)?head_size|kv_channels|attention_head_size|mamba_(d_head|headdim)|query_pre_attn_scalar", HEAD),
    (r"qk_head_dim", 2 * HEAD),
    (
        r"(q|kv|o)_lora_rank|adapter_rank|laurel_rank|hidden_size_per_layer_input|(hc_)?lowrank|router_hidden_size|gated_norm_rank",
        16,
    ),
    (r".*(intermediate|ffn_hidden|feed_forward)_size(_mlp)?|.*ffn_dim|n_inner|dim_ff|dff|d_ff|d_inner", INNER),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts|zero_expert_num", EXPERTS),
    (r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k", 2),
    (r"n_group|num_expert_group|topk_group|o_groups|mamba_n_?groups|n_groups", 1),
    (r"(n|num|moe_num)_shared_experts", 1),
    (r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|num_kv_shared_layers", 0),
    (r"(attention_|local_)?(sliding_)?window(_size)?|local_attention|attention_chunk_size", WINDOW),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|context_length|max_target_positions", POSITIONS),
    (r"(ssm_)?state_size|mamba_d_state", 8),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r"(mamba_)?chunk_size", 8),
]

# What the rules cannot know: what fits together only so, or what makes every kind of layer appear. `None` leaves a field out.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_BY_KIND = {"sliding_attention": _ROPE, "full_attention": _ROPE}
_GEMMA4_ASSISTANT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
_QWEN4 = {
    "indexer_n_heads": HEADS, "indexer_kv_heads": 1, "indexer_head_dim": HEAD, "indexer_budget": 4, "indexer_compress_ratio": 1,
    "hc_lowrank": 16, "ple_embed_dim": WIDTH, "ngram_vocab_size_base": VOCAB, "make_ngram_vocab_size_divisible_by": 8,
}  # fmt: skip
_ZAMBA = {
    "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 2 * WIDTH // HEADS,
}  # fmt: skip
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": {"rope_parameters": {kind: {**_ROPE, "mrope_section": [2, 1, 1]} for kind in _BY_KIND}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note": {
        "audio_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH, "adapter_input_size": WIDTH},
        "vision_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
    },
    "dory": {
        "n_input_layers": 2, "n_recurrent_layers": 4, "n_output_layers": 2, "num_hidden_layers": 8,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
    },
    "dots1": {"n_shared_experts": 1, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 2 * WIDTH},
    "gemma3n": {"text_config": {"activation_sparsity_pattern": [0.0, 0.0]}, "vision_soft_tokens_per_image": 16},
    "gemma3n_text": {"intermediate_size": INNER, "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_assistant": {"_first": {"text_config": _GEMMA4_ASSISTANT}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": None},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "hrm_text": {"num_layers_per_stack": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 2 * WIDTH // HEAD},
    "moshi": {"sliding_window": POSITIONS},
    "nemotron_h": {"time_step_min": 1e-9},
    "nemotron": {"num_key_value_heads": KV_HEADS},
    "phi4_multimodal": {
        "audio_config": {"nemo_conv_channels": 16, "ext_pw_out_channel": WIDTH, "depthwise_separable_out_channel": WIDTH}
    },
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**_ZAMBA, "n_mamba_heads": 2},
    "zamba2": {**_ZAMBA, "time_step_min": 1e-9, "hybrid_layer_ids": [1, 3], "mamba_headdim": 2 * WIDTH // HEADS},
    "reformer": {"axial_pos_embds": False},
}  # fmt: skip

# Where transformers' own `generate` leaves the model's forward over the whole text, and only a setting of the model makes them one; and
# where a part of a model is of another package.
_TOWER = "its pictures are read by a network of the package timm, in whose place stands "
SET_ASIDE = {
    "fast_vlm": f"{_TOWER}a ResNet of transformers.",
    "gemma3n": f"{_TOWER}a convolution.",
    "llama4": "its `forward` asks what its text model makes for `image_outputs`, which it has not, and ends in an error with a picture and "
    "without. With that field added, all that is not refused is exact.",
    "moshi": "its cache forgets what is older than its window (3,000 tokens), which its mask still shows. Held with a window longer than "
    "the texts.",
    "nemotron_h": "the time step is cut off below `time_step_min` where tokens are read one by one, and not where a prompt is read: a "
    "difference of about 0.001 in log-probs. Held without the cut.",
    "nemotron_h_omni": "as `nemotron_h`.",
    "perception_lm": f"{_TOWER}a CLIP of transformers.",
    "unlimited_ocr": "its cache forgets what it wrote before its window (128 tokens), which its mask of a whole text still shows. Held "
    "with a window longer than the texts.",
    "zamba2": "as `nemotron_h`, and behind padding, where the cut moves states, a few hundredths.",
}


def _ruled(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int) or value == 0:
        return value
    for pattern, size in RULES:
        if re.fullmatch(pattern, name):
            return size
    return value


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a shrunk configuration, sub-configurations included. Where layers differ in kind, there is one of each kind."""
    default = config.to_dict()
    depths = {default.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers")} - {None}
    by_layer = {name: value for name, value in default.items() if isinstance(value, list) and value and len(value) in depths}
    kinds = {name: list(dict.fromkeys(map(_hashable, value))) for name, value in by_layer.items()}
    deep = max([LAYERS, *map(len, kinds.values())])
    fields: dict[str, Any] = {}
    for name, value in default.items():
        if name in _NOT_FIELDS or name.startswith("_"):
            continue
        if isinstance(sub := vars(config).get(name), PreTrainedConfig):
            fields[name] = {"model_type": sub.model_type, **_fields(sub)}
        elif name in kinds:
            few = [_ruled(name, kind) for kind in kinds[name]]
            fields[name] = few + few[-1:] * (deep - len(few))
        elif name == "head_dim" and value is None:
            fields[name] = HEAD
        elif name == "logit_scale" and value:
            fields[name] = 1.0  # what is small for hundreds of thousands of tokens says nothing with few
        else:
            fields[name] = _ruled(name, value)
            if re.fullmatch(_DEPTH, name) and isinstance(value, int) and value:
                fields[name] = deep
    if "kv_lora_rank" in fields:  # a latent for all heads
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    return fields


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in changes.items():
        known = fields.get(name)
        merged[name] = _merged(known, value) if isinstance(known, dict) and "model_type" in known else value
    return {name: value for name, value in merged.items() if value is not None}


def config_of(model_type: str, more: dict[str, Any] | None = None) -> PreTrainedConfig:
    """A configuration of a few thousand weights; what is more than the overrides of its type goes over these."""
    own = {**OVERRIDES.get(model_type, {}), **(more or {})}
    default = AutoConfig.for_model(model_type, **own.get("_first", {}))
    fields = _merged(_fields(default), {name: value for name, value in own.items() if name != "_first"})
    if "is_decoder" in fields:
        fields["is_decoder"] = True
    return AutoConfig.for_model(model_type, **fields)


def build(model_type: str, seed: int) -> Any:
    """A model whose distribution is far from uniform, and far from that of another seed."""
    torch.manual_seed(seed)
    config = config_of(model_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if model_type.startswith("musicgen"):  # the auto class hands the decoder the configuration of the whole
            model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])(config.decoder)
        else:
            model = AutoModelForCausalLM.from_config(config)
    return spread(model.eval().float(), seed)


def spread(model: Any, seed: int) -> Any:
    """A model whose weights are drawn anew, so that its distribution is far from uniform, and far from that of another seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2 and "A_log" not in name:
                parameter.normal_(0, 0.5 if "emb" in name or "wte" in name else 0.3, generator=generator)
    model.generation_config = transformers.GenerationConfig(pad_token_id=PAD, bos_token_id=BOS)
    return model
