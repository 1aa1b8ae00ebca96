"""A tiny model of any type that transformers maps to a model of images and text."""

from __future__ import annotations

import warnings
from typing import Any

import architecture_forms
import architecture_tiles
import torch
import transformers
from architecture_models import _merged, config_of, spread
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

#: What a type's configuration needs beyond what its fields' names say, laid over the shrunk one; sub-configurations by field.
OVERRIDES: dict[str, dict[str, Any]] = {**architecture_forms.MODELS, **architecture_tiles.MODELS}

# What fields of these names are, so that pictures have a few patches.
_FITTED: dict[str, Any] = {
    "patch_size": 4, "image_size": 16, "mm_tokens_per_image": 4, "mrope_section": [2, 1, 1], "pooling_kernel_size": 2,
    "image_grid_pinpoints": [[16, 32], [32, 16]], "deepstack_visual_indexes": [0], "projection_dim": 32,
}  # fmt: skip


def _fitted(fields: dict[str, Any]) -> dict[str, Any]:
    """A configuration's fields, what is nested in them as well, with pictures of a few patches."""
    fields = {
        name: _fitted(value) if isinstance(value, dict) else _FITTED[name] if _is_fitted(name, value) else value
        for name, value in fields.items()
    }
    if "patch_size" in fields and "window_size" in fields:
        fields["window_size"] = 16
    if "rope_type" in fields:
        fields.setdefault("mrope_section", _FITTED["mrope_section"])
    return {name: value for name, value in fields.items() if name not in ("transformers_version", "architectures", "dtype")}


def _is_fitted(name: str, value: Any) -> bool:
    return name in _FITTED and bool(value) and isinstance(value, type(_FITTED[name]))


def build(model_type: str, seed: int) -> Any:
    """A model whose distribution is far from uniform, and far from that of another seed."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])
        own = OVERRIDES.get(model_type, {})
        config = config_of(model_type, own)
        fields = _merged(_fitted(config.to_dict()), {name: value for name, value in own.items() if name != "_first"})
        model = made(type(config)(**fields)).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == 1 and not parameter.any():
                parameter.fill_(1.0)  # a gate that is shut lets no picture through
    return spread(model, seed)
