"""Thoughts before an answer: where the answer begins is a function of a row's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Begun(NamedTuple):
    """Where the answer begins among what was generated, if it has; and the token that may yet begin a thought in its place."""

    answer: int | None
    or_else: int | None = None


@dataclass(frozen=True)
class Thinking:
    r"""
    Thoughts between two marks, free of any grammar, before the answer that keeps to one.

    A row thinks if its prompt ends within a thought (the last opening mark in it has no closing one behind it, as templates leave it that
    have the model think), or if its first tokens are the opening mark. Its answer begins behind the next closing mark; that of a row that
    does not think, at once. While it thinks a row cannot end.

    Args:
        start (`tuple[int, ...]`): The tokens of the opening mark.
        end (`tuple[int, ...]`): Those of the closing one.
        always (`bool`, *optional*, defaults to `False`): Whether all rows think, however they begin.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    always: bool = False

    def __post_init__(self) -> None:
        if not self.start or not self.end:
            raise ValueError(f"The marks of thoughts need a token each, got {self.start} and {self.end}.")

    @classmethod
    def of(cls, tokenizer: Any, start: str = "<think>", end: str = "</think>", always: bool = False) -> Thinking:
        """The marks as a tokenizer writes them."""
        first, last = (tuple(tokenizer(mark, add_special_tokens=False)["input_ids"]) for mark in (start, end))
        return cls(first, last, always)

    def begun(self, prompt: Sequence[int], said: Sequence[int]) -> Begun:
        """Where the answer begins in `said`, after a prompt."""
        if self.always or _last(prompt, self.start) > _last(prompt, self.end):
            return Begun(self._behind(said, 0))
        opened = tuple(said[: len(self.start)])
        if opened == self.start:
            return Begun(self._behind(said, len(self.start)))
        may_open = self.start[: len(opened)] == opened
        return Begun(0, self.start[len(opened)] if may_open else None)

    def _behind(self, said: Sequence[int], since: int) -> int | None:
        at = _first(said, self.end, since)
        return None if at < 0 else at + len(self.end)


def _first(tokens: Sequence[int], mark: tuple[int, ...], since: int) -> int:
    """Where a mark stands first; -1 if it does not."""
    while True:
        try:
            at = tokens.index(mark[0], since)
        except ValueError:
            return -1
        if tuple(tokens[at : at + len(mark)]) == mark:
            return at
        since = at + 1


def _last(tokens: Sequence[int], mark: tuple[int, ...]) -> int:
    """Where a mark stands last; -1 if it does not."""
    found, since = -1, 0
    while (at := _first(tokens, mark, since)) >= 0:
        found, since = at, at + 1
    return found
