"""Pictures of types whose models cut them into tiles or patches in a way of their own, and what makes such models small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from architecture_form import Form, attribute, placeholder
from architecture_models import HEAD, HEADS, INNER, KV_HEADS, POSITIONS, VOCAB, WIDTH

_LOOK = VOCAB - 1  # the token that says where a picture is
_DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
_GEMMA4_VISION = {
    "model_type": "gemma4_vision", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2,
    "position_embedding_size": 16,
}  # fmt: skip
_GEMMA4_UNIFIED_VISION = {
    "model_type": "gemma4_unified_vision", "patch_size": 2, "pooling_kernel_size": 2, "mm_embed_dim": WIDTH, "mm_posemb_size": 16,
    "output_proj_dims": WIDTH,
}  # fmt: skip

#: By type, fields laid over its shrunk configuration.
MODELS: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"global_attn_indexes": [0]}},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_DEFAULT, "mrope_section": [1, 1, 2]}}},
    "gemma4": {"vision_config": _GEMMA4_VISION, "text_config": {"use_bidirectional_attention": "vision"}},
    "gemma4_unified": {"vision_config": _GEMMA4_UNIFIED_VISION, "text_config": {"per_layer_config": {"1": {"head_dim": HEAD}}}},
    "glm4v_moe": {"text_config": {"rope_parameters": {**_DEFAULT, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}}},
    "idefics": {"alpha_initializer": "ones"},
    "llama4": {
        "vision_config": {
            "intermediate_size": 4 * WIDTH, "projector_input_dim": WIDTH, "projector_output_dim": WIDTH, "vision_output_dim": WIDTH,
        },
    },
    "minicpmv4_6": {"insert_layer_id": 0, "image_token_id": VOCAB - 1},
    "minicpmv4_7": {"insert_layer_id": 0, "image_token_id": VOCAB - 1},
    "minicpm_ocr": {"insert_layer_id": 0, "image_token_id": VOCAB - 1},
    "mllama": {
        "vision_config": {"intermediate_layers_indices": [0], "vision_output_dim": 2 * WIDTH},
        "text_config": {"cross_attention_layers": [1]},
    },
    "unlimited_ocr": {
        "vision_config": {"sam_config": {"downsample_channels": [16, WIDTH]}}, "text_config": {"sliding_window": POSITIONS},
    },
    "vipllava": {"vision_feature_layers": [-1, -2]},
}  # fmt: skip


def _pixels(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator)


def _placed(model: Any, count: int) -> tuple[int, ...]:
    return (placeholder(model),) * count


def aria(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """With a mask of its pixels."""
    yield Form({"pixel_values": _pixels(generator, 1, 3, 16, 16), "pixel_mask": torch.ones(1, 16, 16, dtype=torch.long)})


def deepseek_vl_hybrid(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """The same picture in two resolutions."""
    high, low = (attribute(model.config, name).image_size for name in ("high_res_vision_config", "vision_config"))
    shown = {"high_res_pixel_values": _pixels(generator, 1, 3, high, high), "pixel_values": _pixels(generator, 1, 3, low, low)}
    yield Form(shown)


def fuyu(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Flat patches, each a token."""
    patch = model.config.patch_size
    yield Form({"pixel_values": _pixels(generator, 1, 6, 3 * patch**2)}, _placed(model, 6))


def gemma4_unified(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Flat patches, each a token, and where each is."""
    places = torch.cartesian_prod(torch.arange(3), torch.arange(2)).flip(-1)[None]
    patch = model.config.vision_config.model_patch_size
    yield Form({"pixel_values": _pixels(generator, 1, 6, 3 * patch**2), "image_position_ids": places})


def git(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """A picture before the text, where no tokens are."""
    size = model.config.vision_config.image_size
    yield Form({"pixel_values": _pixels(generator, 1, 3, size, size)}, (), ruled=())


def granite_docling(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Two tiles of a row, and a mask of tiles."""
    size = model.config.vision_config.image_size
    yield Form(
        {"pixel_values": _pixels(generator, 1, 2, 3, size, size), "pixel_attention_mask": torch.ones(1, 2, dtype=torch.bool)}
    )


def idefics(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Read by tokens that attend to it: the one that says where it is, and those behind."""
    size = model.config.vision_config.image_size
    shown = {"pixel_values": _pixels(generator, 1, 1, 3, size, size)}

    def told(ids: torch.Tensor, prompt: int) -> dict[str, torch.Tensor]:
        return {"image_attention_mask": _behind(ids)[..., None]}

    yield Form(shown, (_LOOK,), told, ruled=(_LOOK,))


def _behind(ids: torch.Tensor) -> torch.Tensor:
    """1 at the token that says where a picture is, and behind it."""
    return ((ids == _LOOK).long().cumsum(-1) > 0).long()


def llama4(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Two tiles, of which four patches each become a token."""
    yield Form({"pixel_values": _pixels(generator, 2, 3, 16, 16)}, _placed(model, 8))


def minicpmv(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Patches of all pictures in one strip, and how many there are in each direction."""
    patch = model.config.vision_config.patch_size
    rows, columns = 4, 8
    share = 16 if model.config.downsample_mode == "16x" else 4
    shown = {
        "pixel_values": _pixels(generator, 1, 3, patch, patch * rows * columns),
        "target_sizes": torch.tensor([[rows, columns]]),
    }
    yield Form(shown, _placed(model, rows * columns // share), side_by_side={"pixel_values": -1})


def mllama(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Two tiles side by side, read by tokens that attend to them: the one that says where they are, and those behind."""
    size, tiles = model.config.vision_config.image_size, model.config.vision_config.max_num_tiles
    seen = (torch.arange(tiles) < 2).long()
    pixels = _pixels(generator, 1, 1, tiles, 3, size, size) * seen[:, None, None, None]
    shown = {"pixel_values": pixels, "aspect_ratio_ids": torch.tensor([[2]]), "aspect_ratio_mask": seen[None, None]}

    def told(ids: torch.Tensor, prompt: int) -> dict[str, torch.Tensor]:
        return {"cross_attention_mask": _behind(ids)[..., None, None] * seen}

    yield Form(shown, (_LOOK,), told)


def unlimited_ocr(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """The whole picture alone: what is cut out of it is described by lists, which rows are not counted by."""
    size = model.config.vision_config.sam_config.image_size
    yield Form({"pixel_values": _pixels(generator, 1, 3, size, size)})


def video_llama_3(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """Flat patches, four of which become a token."""
    patch = model.config.vision_config.patch_size
    grid = {"image_grid_thw": torch.tensor([[1, 4, 4]]), "image_merge_sizes": torch.tensor([2])}
    yield Form({"pixel_values": _pixels(generator, 16, 3 * patch**2), **grid}, _placed(model, 4))


def vipllava(model: Any, generator: torch.Generator) -> Iterator[Form]:
    """As many tokens as patches: its features come of several layers."""
    yield Form({"pixel_values": _pixels(generator, 1, 3, 16, 16)}, _placed(model, 16))


FORMS: dict[str, Callable[[Any, torch.Generator], Iterator[dict[str, torch.Tensor] | Form]]] = {
    "aria": aria,
    "deepseek_vl_hybrid": deepseek_vl_hybrid,
    "fuyu": fuyu,
    "gemma4_unified": gemma4_unified,
    "git": git,
    "granite_docling": granite_docling,
    "idefics": idefics,
    "llama4": llama4,
    "minicpmv4_6": minicpmv,
    "minicpmv4_7": minicpmv,
    "minicpm_ocr": minicpmv,
    "mllama": mllama,
    "unlimited_ocr": unlimited_ocr,
    "video_llama_3": video_llama_3,
    "vipllava": vipllava,
}
