"""Several bases to learn through: the members with another base."""

from __future__ import annotations

from typing import Any

from ..members.members import Members
from ..recipe.combination import BASE


def with_base(members: Members, base: Any) -> Members:
    """
    The members with another base, which may be the object that another member is.

    Raises:
        `ValueError`: If it cannot be a member, or the recipe has no base.
    """
    if BASE not in members.names:
        raise ValueError(f"Several bases were given, but the members are {list(members.names)}: none of them is a base.")
    known = members.find(base)
    model = Members({BASE: base}).models[BASE] if known is None else members.models[known]
    return members.instead(BASE, model)
