"""Where the answer of a row is in its grammar: kept from one token to the next, and taken back with tokens that are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .grammars import Grammar

_KEPT = 64  # masks behind the last token, for drafts that are looked at a second time
_BITS = torch.arange(8, dtype=torch.uint8)


class RowState:
    r"""
    What may follow in the answer of one row.

    Contract: what it says is a function of the tokens that it is asked about. It remembers those that it was asked about last, so that
    another one behind them costs one step, and a shorter text, or another end of it, what differs.

    Args:
        grammar ([`Grammar`]): What the answer may be.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._matcher: Any
        self._read: list[int]
        self._masks: dict[int, torch.Tensor]  # by how many tokens of `_read` stand before
        self._begin()

    def allowed(self, answer: Sequence[int]) -> torch.Tensor | None:
        r"""
        Which tokens may follow.

        Args:
            answer (`Sequence[int]`): The tokens of the answer so far.

        Returns:
            `torch.BoolTensor` of shape `(vocab,)`: Behind the end only what ends it, and so behind a token that is no text and not in the
            grammar: such fill rows that have ended. `None` if the grammar has no such answer.

        Raises:
            `ValueError`: If the grammar is too complex to go on.
        """
        text = self._text(answer)
        whole = len(text) == len(answer)
        read = self._to(text)
        if read == len(text) and whole:
            return self._mask(read)
        stopped = answer[read]
        over = (read == len(text) and self._may_end(read)) or not self.grammar.is_text(stopped)
        return self._ends() if over else None

    def is_kept(self, answer: Sequence[int], cut: bool) -> bool:
        """Whether the tokens of an answer, with nothing behind its end, are one; or with `cut`, the beginning of one."""
        text = self._text(answer)
        if self._to(text) < len(text):
            return False
        return self._may_end(len(text)) or (cut and len(text) == len(answer))

    def _text(self, answer: Sequence[int]) -> Sequence[int]:
        """What stands before the end."""
        at = min((answer.index(end) for end in self.grammar.ends if end in answer), default=len(answer))
        return answer[:at]

    def _to(self, text: Sequence[int]) -> int:
        """Bring the matcher to a text, or to as much of it as the grammar has. Returns how many tokens that is."""
        size = len(self._read)
        if size > len(text) or self._read != text[:size]:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._read, text, strict=False)))
            if same == len(text) and same in self._masks:
                return same  # asked again what was asked before
            self._take_back(same)
        for token in text[len(self._read) :]:
            if not 0 <= token < self.grammar.size or self._matcher.validate_tokens([token]) != 1:
                break
            self._matcher.consume_token(token)
            self._refuse_error()
            self._read.append(token)
        return len(self._read)

    def _take_back(self, same: int) -> None:
        self._matcher.rollback(len(self._read) - same)
        self._refuse_error()
        del self._read[same:]
        self._masks = {at: mask for at, mask in self._masks.items() if at <= same}

    def _mask(self, read: int) -> torch.Tensor:
        if read not in self._masks:
            bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
            if self._matcher.get_error().startswith("NoExtension"):  # bytes that no token has
                self._begin()
                return torch.zeros(self.grammar.size, dtype=torch.bool)
            self._refuse_error()
            self._masks[read] = (bits[:, None] >> _BITS & 1).flatten()[: self.grammar.size].bool()
            if len(self._masks) > _KEPT:
                del self._masks[min(self._masks)]
        return self._masks[read]

    def _may_end(self, read: int) -> bool:
        return bool(self._mask(read)[self.grammar.ends[0]])

    def _ends(self) -> torch.Tensor:
        mask = torch.zeros(self.grammar.size, dtype=torch.bool)
        mask[list(self.grammar.ends)] = True
        return mask

    def _begin(self) -> None:
        """Begin anew: an error of the matcher does not go away."""
        self._matcher, self._read, self._masks = self.grammar.begun(), [], {}

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            reason, at = self._matcher.get_error().splitlines()[0], len(self._read)
            self._begin()
            raise ValueError(f"The grammar cannot be followed any further, {at} tokens into the answer: {reason:.300}")
