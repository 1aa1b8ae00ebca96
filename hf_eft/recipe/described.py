"""Coefficients as a file has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .coefficients import ByPhase
from .rules import known
from .rules.rule import ByRule


def plain(value: Any) -> Any:
    """A coefficient as JSON has it; `None` if it is a callable or a rule of a user, which cannot be saved."""
    if isinstance(value, ByPhase):
        by_phase = {phase: plain(each) for phase, each in value.items()}
        return None if None in by_phase.values() else by_phase
    if isinstance(value, ByRule):
        return known.described(value)
    return value if isinstance(value, float) else None if callable(value) else list(value)


def read(value: Any, weights: Mapping[str, torch.Tensor] | None) -> Any:
    """The coefficient that was described so; `weights` are those of the recipe's gates."""
    if known.is_described(value):
        return known.read(value, weights)
    return {phase: read(each, weights) for phase, each in value.items()} if isinstance(value, Mapping) else value
