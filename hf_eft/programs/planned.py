"""A plan as people and programs read it."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from ..planning import Plan

_GB = 10**9


def as_dict(found: Plan, agreement: float | None = None, drafter: str = "tuned") -> dict[str, Any]:
    """A plan as numbers with units; with an agreement of `drafter` and the combination, also what drafts make of it."""
    told: dict[str, Any] = {
        "machine": f"{found.count} x {found.machine.name}" + (" (measured)" if found.machine.products else " (data sheet)"),
        "members": {
            name: {
                "model": member.shape.architecture,
                "parameters": member.shape.parameters,
                "weights, GB": round(member.weights / _GB, 3),
                "states, GB": round(member.cache / _GB, 3),
                "devices": list(member.devices),
                "ms a step": _milliseconds(member.step),
            }
            for name, member in found.members.items()
        },
        "peak, GB": round(found.peak / _GB, 3),
        "fits": found.fits,
        "ms a token": {"large model alone": _milliseconds(found.alone), "plain": _milliseconds(found.step)},
    }
    if agreement is not None and drafter in found.members:
        block, seconds = found.drafting(agreement, drafter)
        told["ms a token"][f"drafts of {block}, agreement {agreement}"] = _milliseconds(seconds)
    base, *small = found.members.values()
    if sum(member.cache for member in small) > base.cache:
        told["note"] = "The states of the small members take more than the base's: theirs have more heads of keys and values."
    if not found.fits:
        told["what would fit"] = found.nearest()
    return told


def _milliseconds(seconds: float) -> float | None:
    """`None` for what is not planned."""
    return round(1000 * seconds, 3) if math.isfinite(seconds) else None


def _shown(value: float | None) -> str:
    return "?" if value is None else f"{value:,.3f}"


def table(told: dict[str, Any]) -> Table:
    """The members of a plan, and their sums."""
    shown = Table(title=told["machine"], title_justify="left", box=None, pad_edge=False)
    for column in ("", "weights, GB", "states, GB", "ms a step", "devices"):
        shown.add_column(column, justify="left" if not column else "right")
    members = told["members"]
    for name, member in members.items():
        devices = ", ".join(map(str, member["devices"]))
        shown.add_row(name, *(_shown(member[key]) for key in ("weights, GB", "states, GB", "ms a step")), devices)
    sums = {key: sum(member[key] for member in members.values()) for key in ("weights, GB", "states, GB")}
    shown.add_row("all", *(f"{value:,.3f}" for value in sums.values()), _shown(told["ms a token"]["plain"]), "", style="bold")
    return shown
