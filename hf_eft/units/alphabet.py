"""Units as the symbols that all tokens are spelled in, with the ids that they have as tokens of the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..bytes.tokens import token_bytes
from ..spelling.alphabet import NOTHING, Alphabet
from ..spelling.prompts import in_front
from .common import CommonUnits


class UnitAlphabet(Alphabet):
    r"""
    Every id of the base's vocabulary is read; of these, units are written.

    Args:
        units ([`CommonUnits`]): The units, and what the base's tokens are in them.
        tokenizer (`PreTrainedTokenizerBase`): The base's tokenizer.
        ends (`Sequence[int]`): The ids that end a text of the base; the tokenizer's own, if it is among them, is written.
        width (`int`): How many logits the base returns.

    Attributes:
        longer (`torch.LongTensor`): The ids of the base's tokens of text that are no units: read, and never written.
    """

    def __init__(self, units: CommonUnits, tokenizer: Any, ends: Sequence[int], width: int) -> None:
        if not ends:
            raise ValueError(
                f"Texts could never end: the tokenizer of the base ({type(tokenizer).__name__}) has no `eos_token`, and its generation "
                "config has no `eos_token_id`. Set one."
            )
        if beyond := [i for i in units.ids if i >= width]:
            raise ValueError(
                f"The base returns {width} logits, but its tokenizer has ids up to {max(beyond)}: they are not of one model."
            )
        self.tokenizer = tokenizer
        self.ids = torch.tensor(units.ids, dtype=torch.long)
        self.width = width
        self.end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
        self._ends = frozenset(ends)
        self._spelled = units.spelled[next(iter(units.spelled))]
        self._bytes = token_bytes(tokenizer)
        self._units = {text: i for i, text in enumerate(units.texts)}
        self._longest = max(map(len, units.texts))
        self.space = in_front(tokenizer, self._bytes)
        self.special = [i for i in tokenizer.get_vocab().values() if i < width and self.spelled(i) is NOTHING]
        texts = [i for i, text in enumerate(self._bytes) if text is not None]
        written = set(units.ids)
        self.longer = torch.tensor([i for i in texts if i not in written and i < width], dtype=torch.long)

    @property
    def is_whole(self) -> bool:
        """Whether all tokens of the base that are text are units, and one ends a text: then the base writes units as it is."""
        return len(self._ends) == 1 and not len(self.longer)

    def spelled(self, token: int) -> Sequence[int]:
        return (self._spelled[token] if token < len(self._spelled) else None) or NOTHING

    def text(self, ids: Sequence[int], end: bytes) -> bytes:
        pieces = self._pieces(ids, end)
        if pieces and pieces[0][1]:
            pieces[0] = pieces[0][0].removeprefix(self.space), True
        return b"".join(text for text, _ in pieces)

    def cut(self, text: bytes) -> list[int]:
        symbols: list[int] = []
        start = 0
        while start < len(text):
            for stop in range(min(len(text), start + self._longest), start, -1):
                if (symbol := self._units.get(text[start:stop])) is not None:
                    break
            else:
                return [*symbols, *NOTHING]
            symbols.append(symbol)
            start = stop
        return symbols

    def has_ended(self, ids: Sequence[int]) -> bool:
        pad = self.tokenizer.pad_token_id
        return pad is not None and pad not in self._ends and len(ids) > 0 and ids[-1] == pad

    def _pieces(self, ids: Sequence[int], end: bytes) -> list[tuple[bytes, bool]]:
        """What each id is as text, and whether it is one of text. Special tokens are what they are for: begin, end, other text."""
        pieces: list[tuple[bytes, bool]] = []
        for i in ids:
            text = self._bytes[i] if i < len(self._bytes) else None
            if text is not None:
                pieces.append((text, True))
            elif i in self._ends:
                pieces.append((end, False))
            elif i != self.tokenizer.bos_token_id or pieces:  # every member puts its own begin in front of a text
                pieces.append((self.tokenizer.convert_ids_to_tokens(i).encode(), False))
        return pieces
