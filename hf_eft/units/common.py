from __future__ import annotations
from collections.abc import Mapping
from dataclasses import dataclass
@dataclass(frozen=True)
class CommonUnits:
    ids: tuple
    texts: tuple
    spelled: Mapping
    exact: bool
    reason: str
    kind: str
def common_units(tokenizers):
    raise NotImplementedError
