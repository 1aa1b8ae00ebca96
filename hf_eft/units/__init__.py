"""
Members with different tokenizers, unit by unit: a unit is a token of the base that the tokens of every member are made of.

[`common_units`] chooses them and says whether all members agree on them in every text, [`choose`] whether members are combined by them.
"""

from __future__ import annotations

from .choice import Choice, choose
from .common import CommonUnits, common_units

__all__ = ["Choice", "CommonUnits", "choose", "common_units"]
