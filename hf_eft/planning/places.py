"""The configurations of members, from where these are. No weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from ..configuration_eft import EFTConfig
from ..files import load_json


def configurations(places: str | Mapping[str, str]) -> tuple[dict[str, PreTrainedConfig], dict[str, str]]:
    r"""
    What [`~hf_eft.planning.plan`] takes.

    Args:
        places (`str` or `Mapping[str, str]`):
            A saved combination, or members by name, the base first: folders or ids of the Hub. A folder of an adapter stands for the
            model of the member `"reference"` with that adapter.

    Returns:
        `tuple`: Configurations of the distinct models by name, and by the name of an adapter that of its model.

    Raises:
        `ValueError`: If a place holds no model, or only refers to others.
    """
    if isinstance(places, str):
        return _of_combination(places)
    adapters = {name: "reference" for name, place in places.items() if (Path(place) / "adapter_config.json").is_file()}
    if adapters and ("reference" not in places or "reference" in adapters):
        raise ValueError(
            f"The members {', '.join(map(repr, adapters))} are adapters. Give the model under them as the reference."
        )
    return {name: _of_model(name, place) for name, place in places.items() if name not in adapters}, adapters


def _of_combination(place: str) -> tuple[dict[str, PreTrainedConfig], dict[str, str]]:
    config = AutoConfig.from_pretrained(place)
    if not isinstance(config, EFTConfig):
        raise ValueError(f"{place!r} is a model ({config.model_type}), no combination. Give its members one by one.")
    if config.references:
        raise ValueError(f"{place!r} refers to models elsewhere, which a plan does not go to. Give the members one by one.")
    names = [name for name in config.member_names if name in config.member_configs]
    more = [name for name in config.member_configs if name not in names]  # models that are there for their adapters only
    return {name: config.member_configs[name] for name in (*names, *more)}, dict(config.adapters)


def _of_model(name: str, place: str) -> PreTrainedConfig:
    folder = Path(place)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"The member {name!r} has no config.json in {place!r}.")
    if folder.is_dir() and load_json(folder / "config.json").get("model_type") == EFTConfig.model_type:
        raise ValueError(f"The member {name!r} is a combination itself, in {place!r}. Give a model.")
    try:
        return AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ValueError(f"The configuration of the member {name!r} cannot be read from {place!r}: {error}") from error
