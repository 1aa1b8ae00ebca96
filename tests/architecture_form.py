"""A picture as the processor of a type makes it: its tensors, the tokens that hold its place, and what goes with every token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch


class NoPicture(Exception):
    """No picture is known that the type takes."""


def attribute(config: Any, *names: str) -> Any:
    """The first of these that a configuration has; a pair becomes its first."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            return value[0] if isinstance(value, (list, tuple)) else value
    return None


def placeholder(model: Any) -> int:
    """The token that holds the place of a picture, or of a part of it."""
    token = attribute(model.config, "image_token_id", "image_token_index")
    if token is None:
        raise NoPicture("its configuration names no placeholder")
    return int(token)


def is_pixels(name: str, value: torch.Tensor) -> bool:
    """Whether a tensor is what is seen, and not what describes it."""
    return ("pixel_values" in name or "patches" in name) and value.is_floating_point()


@dataclass(frozen=True)
class Form:
    r"""
    A picture.

    Args:
        shown (`dict[str, torch.Tensor]`): What `forward` takes for one row with one picture.
        block (`tuple[int, ...]`, *optional*): The tokens that hold its place; as many placeholders as the model makes of it if `None`.
        told (`Callable`, *optional*): Of ids, `(rows, length)`, and the length of the prompt among them, what goes with every token.
        ruled (`tuple[int, ...]`, *optional*): Tokens that may not be written; the placeholder if `None`.
        side_by_side (`dict[str, int]`): By name, the axis along which those of several rows are put together, if it is not the first.
    """

    shown: dict[str, torch.Tensor]
    block: tuple[int, ...] | None = None
    told: Callable[[torch.Tensor, int], dict[str, torch.Tensor]] | None = None
    ruled: tuple[int, ...] | None = None
    side_by_side: dict[str, int] = field(default_factory=dict)

    def of_row(self, row: int) -> Form:
        """That of another row: another picture in the same place."""
        return replace(self, shown={n: v * (1 + row) if is_pixels(n, v) else v for n, v in self.shown.items()})

    def blank(self) -> Form:
        """A picture of nothing in its place."""
        return replace(self, shown={n: torch.full_like(v, 0.5) if is_pixels(n, v) else v for n, v in self.shown.items()})

    def of_rows(self, rows: int) -> dict[str, torch.Tensor]:
        """What is given for so many rows."""
        each = [self.of_row(row).shown for row in range(rows)]
        return {name: torch.cat([shown[name] for shown in each], dim=self.side_by_side.get(name, 0)) for name in self.shown}
