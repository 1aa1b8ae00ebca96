"""Bytes as the symbols that all tokens are spelled in, with the ids of `ByT5Tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..spelling.alphabet import NOTHING, Alphabet
from .tokens import BYTES

PAD, EOS, OFFSET = 0, 1, 3  # of `ByT5Tokenizer`: padding, end, unknown, then the bytes


class ByteAlphabet(Alphabet):
    """Every id is a byte, or the end of a text."""

    def __init__(self) -> None:
        self.ids = torch.arange(BYTES) + OFFSET
        self.end = EOS
        self.width = BYTES + OFFSET
        self.special = [EOS]
        self.space = b""

    def spelled(self, token: int) -> Sequence[int]:
        return NOTHING if token < OFFSET else (token - OFFSET,)

    def text(self, ids: Sequence[int], end: bytes) -> bytes:
        if any(i < OFFSET and i != EOS for i in ids):
            raise ValueError("A prompt has padding in it that its `attention_mask` does not say is padding.")
        return b"".join(end if i == EOS else bytes([i - OFFSET]) for i in ids)

    def cut(self, text: bytes) -> list[int]:
        return list(text)

    def has_ended(self, ids: Sequence[int]) -> bool:
        return EOS in ids and ids[-1] == PAD
