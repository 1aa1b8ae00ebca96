"""
Members with different tokenizers, unit by unit: a unit is a token of the base that the tokens of every member are made of.

[`common_units`] chooses them and says whether all members agree on them in every text, [`choose`] whether members are combined by them. A
[`TokenLevelModel`] is a member as a model over units.
"""

from __future__ import annotations

from .choice import Choice, choose
from .common import CommonUnits, common_units
from .members import read_in_units
from .model import TokenLevelModel
from .speaker import unit_tokenizer

__all__ = ["Choice", "CommonUnits", "TokenLevelModel", "choose", "common_units", "read_in_units", "unit_tokenizer"]
