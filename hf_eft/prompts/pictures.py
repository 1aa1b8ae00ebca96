"""Pictures and films beside tokens: which arguments they come in, as the processors of transformers make them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.image_utils import load_image

from .messages import is_film, is_picture

KINDS = "mm_token_type_ids"  # 0 for text
#: By token, whether it stands for a picture: given with pictures, they say where these are.
DESCRIBING = ("token_type_ids", KINDS, "moe_mm_token_type_ids")
# How processors of transformers call what they make of pictures and films: pixels, and what says how these are cut and laid out.
_SEEN = re.compile(
    r"pixel|image|video|vision|patch|frame|tile|grid|crop|spatial_shapes|aspect_ratio|target_sizes|second_per_grid|cross_attention_mask"
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


def is_pixels(name: str) -> bool:
    """Whether an argument of this name holds pixels, and not what describes them."""
    return _PIXELS.match(name) is not None


def holds_data(value: Any) -> bool:
    """Whether there is a tensor or an array in a value."""
    if isinstance(value, Mapping):
        return any(map(holds_data, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_data, value))
    return isinstance(value, torch.Tensor) or hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def shown_in(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation, as [`~hf_eft.prompts.messages.read_messages`] leaves it, shows pictures or films."""
    return any(is_picture(part) or is_film(part) for part in _parts_of(messages))


def seen_by(
    name: str, processor: Any, conversations: Sequence[Sequence[Mapping[str, Any]]], **options: Any
) -> dict[str, torch.Tensor]:
    r"""
    What a member's processor makes of conversations that are to be continued.

    Args:
        name (`str`): The member.
        processor (`ProcessorMixin`): With a chat template.
        conversations (`Sequence[Sequence[Mapping[str, Any]]]`): As [`~hf_eft.prompts.messages.read_messages`] makes them, with pictures and
            films among them.
        **options: Passed on to `apply_chat_template`.

    Raises:
        `ValueError`: If there is no chat template, or it refuses the messages, or there are films and the processor reads none.
    """
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"The processor of the member {name!r} has no chat template, which says where a picture goes. Set one."
        )
    films = [_frames(part["video"]) for messages in conversations for part in _parts_of(messages) if is_film(part)]
    if films and getattr(processor, "video_processor", None) is None:
        raise ValueError(
            f"The processor of the member {name!r} ({type(processor).__name__}) reads no films. Show the frames that "
            "matter, each as a picture."
        )
    given = {"add_generation_prompt": True, **options, "tokenize": False}
    try:
        texts = [processor.apply_chat_template([_in_parts(each) for each in messages], **given) for messages in conversations]
    except ImportError:  # of what templates run with
        raise
    except Exception as error:  # a template is a program of somebody else's, and raises what it likes
        raise ValueError(f"the chat template does not take these messages: {error}") from error
    rows = [[load_image(part["image"]) for part in _parts_of(messages) if is_picture(part)] for messages in conversations]
    # (Rows without any are not what every processor takes, and which picture is whose the placeholders say.)
    images = rows if all(rows) else [picture for row in rows for picture in row]
    first = getattr(processor.tokenizer, "bos_token", None)
    made = processor(
        text=texts, **({"images": images} if images else {}), padding=True, padding_side="left", return_tensors="pt",
        # Which frames are shown was chosen by whoever gave them.
        **({"videos": films, "do_sample_frames": False} if films else {}),
        # Most templates write the token that begins a text; it must not stand there twice.
        **({"add_special_tokens": False} if first and texts[0].startswith(first) else {}),
    )  # fmt: skip
    return dict(made)


def _parts_of(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [part for message in messages if isinstance(message["content"], list) for part in message["content"]]


def _frames(film: Any) -> Any:
    return film if hasattr(film, "shape") else [load_image(frame) for frame in film]


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is a list of parts, which templates of processors iterate over."""
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}


def is_processor(tokenizer: Any) -> bool:
    """Whether this makes inputs of pictures too."""
    return getattr(tokenizer, "image_processor", None) is not None


def tokenizer_of(tokenizer: Any) -> Any:
    """The tokenizer itself, where it may be in a processor."""
    return tokenizer.tokenizer if is_processor(tokenizer) else tokenizer


def tokenizers_of(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The tokenizers of members, by name, where a processor may stand in place of its own."""
    return {name: tokenizer_of(each) for name, each in (given or {}).items()}
