"""A plan as people and programs read it."""

from __future__ import annotations

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
                "ms a step": round(1000 * member.step, 3),
            }
            for name, member in found.members.items()
        },
        "peak, GB": round(found.peak / _GB, 3),
        "fits": found.fits,
        "ms a token": {"large model alone": round(1000 * found.alone, 3), "plain": round(1000 * found.step, 3)},
    }
    if agreement is not None and drafter in found.members:
        block, seconds = found.drafting(agreement, drafter)
        told["ms a token"][f"drafts of {block}, agreement {agreement}"] = round(1000 * seconds, 3)
    base, *small = found.members.values()
    if sum(member.cache for member in small) > base.cache:
        told["note"] = "The states of the small members take more than the base's: theirs have more heads of keys and values."
    if not found.fits:
        told["what would fit"] = found.nearest()
    return told


def table(told: dict[str, Any]) -> Table:
    """The members of a plan, and their sums."""
    shown = Table(title=told["machine"], title_justify="left", box=None, pad_edge=False)
    for column in ("", "weights, GB", "states, GB", "ms a step", "devices"):
        shown.add_column(column, justify="left" if not column else "right")
    members = told["members"]
    for name, member in members.items():
        devices = ", ".join(map(str, member["devices"]))
        shown.add_row(name, *(f"{member[key]:,.3f}" for key in ("weights, GB", "states, GB", "ms a step")), devices)
    sums = {key: sum(member[key] for member in members.values()) for key in ("weights, GB", "states, GB")}
    shown.add_row("all", *(f"{value:,.3f}" for value in sums.values()), f"{told['ms a token']['plain']:,.3f}", "", style="bold")
    return shown
