"""Members by name, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..recipe.combination import BASE, REFERENCE, TUNED
from .adapters import by_adapter


def named_members(base: Any, tuned: Any, reference: Any) -> dict[str, Any]:
    """The members in their order: the base, the tuned one or ones, the reference; those that are `None` left out."""
    models: dict[str, Any] = {}
    tuned = by_adapter(tuned)
    if base is not None:
        models[BASE] = base
    if isinstance(tuned, Mapping):
        if clash := {BASE, REFERENCE} & tuned.keys():
            raise ValueError(f"`tuned` may not name a member {clash.pop()!r}: that name has a meaning of its own.")
        models.update(tuned)
    elif tuned is not None:
        models[TUNED] = tuned
    if reference is not None:
        models[REFERENCE] = reference
    return models
