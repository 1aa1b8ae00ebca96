"""Pictures small enough to stand in a page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

_SIDE = 512  # pixels, at most: more is not told apart beside a text


def figures(images: Sequence[Any]) -> str:
    r"""
    Pictures as HTML that loads nothing.

    Args:
        images (`Sequence[PIL.Image.Image]`): The pictures. They stay as they are.

    Returns:
        `str`: An `img` for each, with the picture in its address, at most 512 pixels wide and high.

    Raises:
        `ValueError`: If one of them is no picture.
    """
    shown = [f'<img src="{_address(i, image)}" alt="{html.escape(f"picture {i + 1}")}">' for i, image in enumerate(images)]
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""


def _address(index: int, image: Any) -> str:
    if not hasattr(image, "thumbnail"):
        raise ValueError(f"`images[{index}]` must be a picture, `PIL.Image.Image`, got {type(image).__name__}.")
    small = image.convert("RGB")  # a copy, without transparency, as models see it
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
