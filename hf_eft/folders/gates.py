"""The weights of a recipe's gates, in one file beside it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..configuration_eft import EFTConfig
from ..files.trust import inside
from ..recipe.combination import Combination
from ..recipe.described import gates_of
from ..recipe.rules.known import gate_weights
from .places import Place

GATES = "rules.safetensors"
_MOST = 8 * 2**20  # bytes, which is far above any gate


def write_gates(combination: Combination, folder: Path) -> None:
    """Write the weights of a recipe's gates into a new folder; nothing if it has none."""
    from safetensors.torch import save_file

    if weights := gate_weights(combination.each_rule):
        save_file(weights, folder / GATES, metadata={"format": "pt"})


def read_recipe(config: EFTConfig, place: Place, subfolder: str = "") -> Combination:
    r"""
    The recipe of a configuration, with the weights that lie beside it.

    Args:
        config ([`EFTConfig`]): The configuration.
        place ([`Place`]): Where it lies.
        subfolder (`str`, *optional*): Where in there.

    Raises:
        `ValueError`: If it is no recipe, or weights of a gate are missing, too large or others than it says.
    """
    if not gates_of(config.combination):
        return Combination.from_dict(config.combination)
    relative = f"{subfolder}/{GATES}" if subfolder else GATES
    path = inside(Path(place.name), relative) if place.commit is None else place.file(relative)
    if path is None or not path.is_file():
        raise ValueError(
            f"There is no {relative!r} in {place.name!r}, where the weights of the recipe's gates stand. Save it anew."
        )
    return Combination.from_dict(config.combination, _weights(path))


def _weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if (size := path.stat().st_size) > _MOST:
        raise ValueError(f"{str(path)!r} has {size:,} bytes, expected at most {_MOST:,}: it is refused.")
    try:
        # Copies: how a file lies in memory changes the last digits of a sum.
        return {name: weight.clone() for name, weight in load_file(path).items()}
    except Exception as error:  # what is in a file decides what is raised
        raise ValueError(f"{str(path)!r} cannot be read as safetensors: {error}") from error
