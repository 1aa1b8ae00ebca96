"""Pictures and films beside tokens: which arguments they come in, as the processors of transformers make them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

KINDS = "mm_token_type_ids"  # 0 for text
#: By token, whether it stands for a picture: given with pictures, they say where these are.
DESCRIBING = ("token_type_ids", KINDS, "moe_mm_token_type_ids")
# How processors of transformers call what they make of pictures and films: pixels, and what says how these are cut and laid out.
_SEEN = re.compile(
    r"pixel|image|video|vision|patch|frame|tile|grid|crop|spatial_shapes|aspect_ratio|target_sizes|second_per_grid"
)
_PIXELS = re.compile(r"pixel_values|image_patches")
# Made by one model's encoder: another's would make something else of the same picture.
_ENCODED = re.compile(r"embed|encoder|hidden|features")


def take_pictures(given: dict[str, Any]) -> dict[str, Any]:
    r"""
    Take what a call shows beside its tokens out of what it is given.

    Args:
        given (`dict[str, Any]`): Its arguments by name. Those that are taken are gone afterwards.

    Returns:
        `dict[str, Any]`: Pixels and what describes them, and then the kinds of tokens as well. Empty if nothing is shown.
    """
    named = [name for name in given if _SEEN.search(name) and not _ENCODED.search(name)]
    for name in [name for name in named if given[name] is None]:
        del given[name]
    seen = [name for name in named if name in given]
    if not any(_PIXELS.search(name) and holds_data(given[name]) for name in seen):
        return {}
    return {name: given.pop(name) for name in (*seen, *(n for n in DESCRIBING if given.get(n) is not None))}


def holds_data(value: Any) -> bool:
    """Whether there is a tensor or an array in a value."""
    if isinstance(value, Mapping):
        return any(map(holds_data, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_data, value))
    return isinstance(value, torch.Tensor) or hasattr(value, "__array__") or hasattr(value, "__array_interface__")
