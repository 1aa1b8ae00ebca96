"""Pictures in the form that processors make: those that become tokens of a codebook, and those laid out in a way of their type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from architecture_form import Form, placeholder
from architecture_models import PAD

_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_CODES, _FIRST_CODE = 16, 64  # of a codebook of pictures, and the first of the tokens that stand for them
Shown = dict[str, torch.Tensor]

# A tower of transformers in the place of one that needs the package timm.
_CONVOLUTIONS = {
    "model_type": "resnet", "embedding_size": 32, "hidden_sizes": [32, 32], "depths": [1, 1], "layer_type": "basic", "hidden_size": 32,
}  # fmt: skip
_TRANSFORMER = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4, "model_args": {"embed_dim": 32}, "global_pool": None,
}  # fmt: skip
# The token before a picture, which is counted by it: checkpoints name it, and the configuration has no field for it.
_END, _BEGIN = 93, 94
#: By type, what its configuration needs, as in `architecture_sight_models.OVERRIDES`.
MODELS: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "image_token_offset": _FIRST_CODE, "audio_token_offset": _FIRST_CODE + _CODES, "audio_token_id": 94,
        "vision_config": {
            "codebook_size": _CODES, "embed_dim": 8, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1],
            "num_res_blocks": 1, "attn_resolutions": [], "resolution": 16, "spatial_scale_factor": 2,
        },
        "audio_config": {"codebook_size": 8, "codebook_dim": 32, "num_filters": 4, "upsampling_ratios": [2, 2]},
    },
    "chameleon": {
        "vocabulary_map": {"<image>": 95, **{f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": _FIRST_CODE + i for i in range(_CODES)}},
        "vq_config": {
            "num_embeddings": _CODES, "embed_dim": 8, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1],
            "num_res_blocks": 1, "resolution": 16,
        },
    },
    "cohere_compass": {
        "text_config": {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
        },
    },
    "cosmos3_edge": {"text_config": {"rope_parameters": _ROPE}, "projector_hidden_size": 64},
    "deepseek_ocr2": {
        "vision_config": {
            "sam_config": {
                "global_attn_indexes": [1], "window_size": 2, "mlp_dim": 64, "output_channels": 16, "downsample_channels": [16, 32],
                "scale": 16,
            },
        },
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    },
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64, "global_head_dim": 8},
        "vision_config": {"position_embedding_size": 64},
        "canvas_length": 4,
    },
    "emu3": {
        "vocabulary_map": {
            "<image>": 95, "<|extra_200|>": 94, **{f"<|visual token {i:06}|>": _FIRST_CODE + i for i in range(_CODES)},
        },
        "vq_config": {
            "codebook_size": _CODES, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": [],
            "embed_dim": 4, "num_attention_heads": 1,
        },
    },
    "fast_vlm": {"vision_config": {**_CONVOLUTIONS, "model_args": None, "global_pool": None}},
    "granite4_vision": {
        "vision_config": {"hidden_size": 64}, "downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [0, 1, 0, 1],
    },
    "hy_v4_vl": {"text_config": {"rope_parameters": _ROPE}},
    "inkling2": {
        "text_config": {"n_layers_per_attn_res_block": 1, "rel_extent": 64},
        "vision_config": {"text_hidden_size": 32, "posemb_grid_size": 4, "projection_hidden_dim": 32},
    },
    "inkling2_loop": {
        "text_config": {
            "num_hidden_layers": 3, "layer_types": ["hybrid_sliding", "hybrid", "hybrid"], "n_layers_per_attn_res_block": 1,
            "loop_layer_index_start": 1, "loop_layer_index_end": 2, "loop_num_passes": 2, "loop_gate_rank": 4, "rel_extent": 64,
        },
        "vision_config": {"text_hidden_size": 32, "posemb_grid_size": 4, "projection_hidden_dim": 32},
    },
    "inkling_mm_model": {
        "text_config": {"logits_mup_width_multiplier": 1.0}, "vision_config": {"text_hidden_size": 32},
        "audio_config": {"text_hidden_size": 32},
    },
    "kimi_k25": {"projection_hidden_size": 32},
    "molmo2": {
        "text_config": {"num_hidden_layers": 2, "additional_vocab_size": 8, "rope_scaling_layers": None},
        "vision_config": {"image_size": [16, 16], "num_position_embeddings": 16, "num_key_value_heads": 4},
        "adapter_config": {"vision_feature_layer": [1, 0], "text_hidden_size": 32, "num_key_value_heads": 4},
        "image_patch_id": 95, "image_start_token_id": 94, "image_end_token_id": 93,
    },
    "muse_glimmer": {"out_hidden_size": 128, "projector_hidden_size": 64},
    "muse_spark": {
        "out_hidden_size": 128, "projector_hidden_size": 64, "text_config": {"moe_hidden_size": 32},
        "audio_config": {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    },
    "nemotron_h_omni": {
        "image_token_id": 95, "projector_hidden_size": 64, "vision_hidden_size": 32, "text_config": {"time_step_min": 1e-9},
        "vision_config": {"patch_dim": 48, "video_patch_dim": 96, "max_img_size": 64},
    },
    "perception_lm": {"vision_config": _TRANSFORMER},
    "qwen2_5_omni_thinker": {"vision_start_token_id": _BEGIN, "video_token_index": 97, "audio_token_index": 98},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": _BEGIN, "video_token_id": 97, "audio_token_id": 98},
    "step3p7": {
        "text_config": {
            "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5, "num_sliding_attention_heads": 4,
            "share_expert_dim": 64, "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
        },
    },
}  # fmt: skip


def sized(model: Any, generator: torch.Generator) -> Iterator[Shown]:
    """A picture with its size beside it, which a codebook turns into tokens."""
    yield {"pixel_values": torch.rand(1, 3, 8, 8, generator=generator), "image_sizes": torch.tensor([[8, 8]])}


def small(model: Any, generator: torch.Generator) -> Iterator[Shown]:
    """A picture of which nothing is said."""
    yield {"pixel_values": torch.rand(1, 3, 8, 8, generator=generator)}


def squares(model: Any, generator: torch.Generator) -> Iterator[Shown]:
    """A picture in squares of several patches, channels last."""
    vision = model.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    yield {"pixel_values": torch.rand(4, side, side, 3, generator=generator), "image_grid_thw": torch.tensor([[1, 2, 2]])}


def layered(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """A picture in two tiles beside a small one of the whole, whose features go to several layers: 4, and 2 rows of 4 with an end."""
    shown = {"pixel_values": torch.rand(1, 3, 3, 16, 16, generator=generator), "image_sizes": torch.tensor([[16, 32]])}
    yield Form(shown, (placeholder(model),) * (4 + 2 * (4 + 1)))


def framed(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Four patches of two frames, channels last."""
    yield Form({"pixel_values": torch.rand(4, 2, 4, 4, 3, generator=generator)}, (placeholder(model),) * 4)


class Pooled(Form):
    """A picture whose patches are pooled by their places among those of all rows."""

    def of_rows(self, rows: int) -> dict[str, torch.Tensor]:
        shown, patches = super().of_rows(rows), self.shown["pixel_values"].shape[:-1].numel()
        places = self.shown["image_token_pooling"]
        return {**shown, "image_token_pooling": torch.cat([places + row * patches for row in range(rows)])}


def pooled(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """A small picture of the whole and one part of it, four patches to a token."""
    places = torch.arange(32).view(2, 2, 2, 2, 2).transpose(2, 3).reshape(8, 4)
    shown = {
        "pixel_values": torch.rand(2, 16, 48, generator=generator), "image_token_pooling": places,
        "image_grids": torch.tensor([[2, 2, 2, 2]]), "image_num_crops": torch.tensor([2]),
    }  # fmt: skip
    yield Pooled(shown)


def begun(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """A picture in patches, each of them twice, between a token that begins it and one that ends it."""
    for shown in doubled(model, generator):
        place = placeholder(model)
        # (Without a mask it counts positions as those of a text.)
        yield Form(
            shown, (_BEGIN, *[place] * 4, _END), lambda ids, prompt: {"attention_mask": (ids != PAD).long()}, (place, _BEGIN)
        )


def square(model: Any, generator: torch.Generator) -> Iterator[Shown]:
    """A picture of sixteen patches."""
    yield {"pixel_values": torch.rand(1, 3, 16, 16, generator=generator)}


def gridded(model: Any, generator: torch.Generator) -> Iterator[Shown]:
    """A picture in patches, of which their rows and columns are said."""
    yield {"pixel_values": torch.rand(16, 48, generator=generator), "image_grid_hw": torch.tensor([[4, 4]])}


def patched(model: Any, generator: torch.Generator) -> Iterator[Shown]:
    """A picture in patches, whose rows and columns are kept."""
    yield {"pixel_values": torch.rand(16, 3, 4, 4, generator=generator), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def tiled(model: Any, generator: torch.Generator) -> Iterator[Shown]:
    """A picture of one tile."""
    yield {"pixel_values": torch.rand(1, 1, 3, 16, 16, generator=generator)}


def doubled(model: Any, generator: torch.Generator) -> Iterator[Shown]:
    """A picture in patches, each of them twice, as a film of two frames would be."""
    yield {"pixel_values": torch.rand(16, 96, generator=generator), "image_grid_thw": torch.tensor([[1, 4, 4]])}


FORMS = {
    "apertus1p5": sized,
    "chameleon": small,
    "emu3": sized,
    "gemma3n": square,
    "granite4_vision": layered,
    "inkling2": squares,
    "inkling2_loop": squares,
    "inkling_mm_model": framed,
    "kimi_k25": patched,
    "molmo2": pooled,
    "muse_glimmer": doubled,
    "muse_spark": doubled,
    "nemotron_h_omni": gridded,
    "perception_lm": tiled,
    "qwen2_5_omni_thinker": begun,
    "qwen3_omni_moe_thinker": begun,
}
