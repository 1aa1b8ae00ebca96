"""What texts are spelled in: the symbols that ids stand for, and the text that they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

NOTHING = (-1,)  # of an id that is no text: nothing is known of what follows it


class Alphabet(Protocol):
    r"""
    The ids that members whose tokens differ read and write in common.

    Attributes:
        ids (`torch.LongTensor` of shape `(symbols,)`): The id of each symbol.
        end (`int`): The id that stands for the end of a text, whichever tokens that is for a member.
        width (`int`): How many ids there are.
        special (`Sequence[int]`): The ids that only prompts have, where something is known of what follows them.
        space (`bytes`): What ids of a text have in front of it; members whose tokenizers put something else there put it in its place.
    """

    ids: torch.Tensor
    end: int
    width: int
    special: Sequence[int]
    space: bytes

    def spelled(self, token: int) -> Sequence[int]:
        """The symbols of an id; [`NOTHING`] for one that is no text."""

    def text(self, ids: Sequence[int], end: bytes) -> bytes:
        """The text of a prompt, for a member that ends texts with `end`."""

    def cut(self, text: bytes) -> list[int]:
        """The symbols of a piece of text, which no id begins or ends with."""

    def has_ended(self, ids: Sequence[int]) -> bool:
        """Whether this is no prompt but a row that has ended, and is padded while others go on."""
