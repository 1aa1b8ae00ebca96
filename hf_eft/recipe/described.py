"""Coefficients as a file has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .coefficients import ByPhase
from .rules import known
from .rules.gate import Gate
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


def ruled(description: Any) -> list[str]:
    """The members whose coefficients are by rules in the description of a recipe."""
    return [name for name, value in _coefficients(description).items() if _rules(value)]


def gates_of(description: Any) -> bool:
    """Whether a recipe has gates, whose weights are not in its description."""
    return any(
        isinstance(each, Mapping) and each.get("rule") == Gate.name
        for value in _coefficients(description).values()
        for each in _rules(value)
    )


def _coefficients(description: Any) -> Mapping[str, Any]:
    found = description.get("coefficients") if isinstance(description, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _rules(value: Any) -> list[Any]:
    """The descriptions of the rules in a coefficient, in any phase."""
    if known.is_described(value):
        return list(value["rules"])
    return [rule for each in value.values() for rule in _rules(each)] if isinstance(value, Mapping) else []
