"""What a file is given of a configuration: what can be read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .trust import LOST, clean, is_read

# Where a configuration was. Nobody set it, and nobody misses it in a file.
_OF_THE_PLACE = ("_name_or_path", "name_or_path")


def scrubbed(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description to be written, without what is not read back, at any depth."""
    return {
        key: scrubbed(value) if isinstance(value, Mapping) else value for key, value in description.items() if key not in LOST
    }


def readable(description: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    r"""
    What of an EFT configuration can be read back from a file.

    Args:
        description (`Mapping[str, Any]`): The configuration.
        defaults (`Mapping[str, Any]`): As for [`check_description`].

    Returns:
        `tuple`: The configuration that a file may have, and the names of what is left out.
    """
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for key, value in description.items():
        if key in _OF_THE_PLACE:
            continue
        if key in LOST or not is_read(key, description, defaults):
            left_out.append(key)
        elif key.endswith("_config") and isinstance(value, Mapping):
            kept[key], inner = _readable_part(key, scrubbed(value), 0)
            left_out += [f"{key}.{each}" for each in inner]
        else:
            kept[key] = value
    return kept, left_out


def _readable_part(name: str, description: Mapping[str, Any], depth: int) -> tuple[dict[str, Any], list[str]]:
    """The same of a part, each value asked of what will read it."""
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for key, value in description.items():
        try:
            clean(name, {key: value}, depth)
        except ValueError:
            if not isinstance(value, Mapping):
                left_out.append(key)
                continue
            kept[key], inner = _readable_part(name, value, depth + 1)
            left_out += [f"{key}.{each}" for each in inner]
        else:
            kept[key] = value
    return kept, left_out
