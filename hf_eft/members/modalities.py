"""Pictures, films and sounds beside tokens: what members may be shown, and what is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..prompts.pictures import KINDS, holds_data

# Tensors that describe text. Whatever else a model is given beside tokens stands for something that only it would see.
_TEXT = {
    *("token_type_ids", "cache_position", "position_ids", "seq_idx"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
}
_PLACEHOLDER = re.compile(
    r"(image|video|audio|speech|vision|visual|frame|boi|eoi|boa|eoa|codec|tts)\w*_(token_id|token_index|token_ids)$"
)
_SOUND = re.compile(r"audio|speech|input_features|input_values")
_REMEDY = "Members read text, pictures and films: leave it out, or use the model that takes it by itself."


def refuse_inputs(given: Mapping[str, Any]) -> None:
    """Raise if a call is given more than text and pictures."""
    for name, value in given.items():
        if name in _TEXT or not holds_data(value):
            continue
        if name == KINDS and not bool(torch.as_tensor(value).any()):
            continue
        raise ValueError(f"`{name}` is no text and no picture, so that not every member would take it. {_REMEDY}")


def refuse_sounds(given: Mapping[str, Any]) -> None:
    """Raise if a call lets its model hear what other members would not."""
    refuse_inputs({name: value for name, value in given.items() if _SOUND.search(name)})


def placeholders(configs: Iterable[Any]) -> dict[int, str]:
    """The ids that stand for images, sounds or films in prompts of multimodal models, and what each configuration calls them."""
    found: dict[int, str] = {}
    for config in configs:
        if config.get_text_config(decoder=True) is config:
            continue  # of text alone
        for key, value in config.to_dict().items():
            if _PLACEHOLDER.search(key):
                found |= {
                    i: key for i in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(i, int) and i >= 0
                }
    return found


def refuse_placeholders(input_ids: torch.Tensor, known: Mapping[int, str]) -> None:
    """Raise if prompts, `(rows, length)`, hold the place of something that is not text."""
    if not known:
        return
    places = torch.isin(input_ids, torch.tensor(list(known), device=input_ids.device))
    if bool(places.any()):
        token = int(input_ids[places][0])
        raise ValueError(
            f"The prompt has the token {token} (`{known[token]}`), which holds the place of something that is no text, and that the small "
            "models of the add-on were not shown. Give each its own prompt and pictures: `EFTLogitsProcessor(..., member_inputs={name: "
            "{'input_ids': ..., 'pixel_values': ..., ...}})`, or let `generate` be given them by name."
        )
