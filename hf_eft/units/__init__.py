"""
Members with different tokenizers, unit by unit: a unit is a token of the base that the tokens of every member are made of.

[`common_units`] chooses them and says whether all members agree on them in every text.
"""

from __future__ import annotations

from .common import CommonUnits, common_units

__all__ = ["CommonUnits", "common_units"]
