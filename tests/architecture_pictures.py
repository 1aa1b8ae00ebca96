"""A picture for a model of any type: pixel values, and what goes with them, in the form that the type's processor makes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import architecture_forms
import architecture_tiles
import torch
from architecture_form import Form
from architecture_form import attribute as _attribute

#: By type, pictures in a form that no names of a model tell: `(model, generator)` to what its `forward` takes, or to a [`Form`].
FORMS: dict[str, Callable[[Any, torch.Generator], Iterator[dict[str, torch.Tensor] | Form]]] = {
    **architecture_forms.FORMS,
    **architecture_tiles.FORMS,
}


def candidates(model: Any, generator: torch.Generator) -> Iterator[dict[str, torch.Tensor] | Form]:
    """Pictures in the forms that processors make, as far as a model's names say which."""
    if own := FORMS.get(model.config.model_type):
        yield from own(model, generator)
        return
    takes = inspect.signature(model.forward).parameters
    vision = getattr(model.config, "vision_config", model.config)
    patch = _attribute(vision, "patch_size") or 14
    size = _attribute(vision, "image_size") or 4 * patch
    channels = _attribute(vision, "num_channels", "in_channels", "in_chans") or 3

    def pixels(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    if "image_grid_thw" in takes:
        grid, merge = (
            torch.tensor([[1, 4, 4]]),
            {"image_merge_sizes": torch.tensor([2])} if "image_merge_sizes" in takes else {},
        )
        for depth in (_attribute(vision, "temporal_patch_size") or 1, 1, 2):
            yield {"pixel_values": pixels(16, channels * depth * patch**2), "image_grid_thw": grid, **merge}
        yield {"pixel_values": pixels(16, channels, patch, patch), "image_grid_thw": grid, **merge}
    if "image_position_ids" in takes:
        places = torch.cartesian_prod(torch.arange(6), torch.arange(6)).flip(-1)[None]
        yield {"pixel_values": pixels(1, 36, channels * patch**2), "image_position_ids": places}
    sizes: dict[str, torch.Tensor] = {"image_sizes": torch.tensor([[size, size]])} if "image_sizes" in takes else {}
    if "pixel_attention_mask" in takes:
        mask = torch.ones(1, 1, size, size, dtype=torch.bool)
        yield {"pixel_values": pixels(1, 1, channels, size, size), "pixel_attention_mask": mask}
    if "spatial_shapes" in takes:
        shapes = {"spatial_shapes": torch.tensor([[4, 4]]), "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long)}
        yield {"pixel_values": pixels(1, 16, channels * patch**2), **shapes}
    for tiles, known in itertools.product(((), (1,), (3,)), (sizes, {}) if sizes else ({},)):
        yield {"pixel_values": pixels(1, *tiles, channels, size, size), **known}
    yield {"pixel_values": pixels(1, channels, size, size), "high_res_pixel_values": pixels(1, channels, 1024, 1024)}
