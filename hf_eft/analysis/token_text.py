"""The text of each token of a sequence, characters of several tokens included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoding makes of bytes that are no character yet
_LONGEST = 4  # bytes of a character in UTF-8: after as many tokens the text really has a replacement character
_CONTEXT = 4  # tokens before the first, so that decoding does not take it for the beginning of a text


class Token(NamedTuple):
    """A token of the vocabulary and its text."""

    id: int
    text: str


class TokenTexts:
    """The texts of a tokenizer's tokens, each decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, Token] = {}
        # Decoding drops the space before a first word: what follows something keeps it.
        self._before = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._skipped = len(self.decode(self._before))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included, nothing tidied up."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def of(self, token: int) -> Token:
        """A token by itself."""
        if token not in self._known:
            self._known[token] = Token(token, self.decode([*self._before, token])[self._skipped :])
        return self._known[token]

    def sequence(self, prompt: Sequence[int], continuation: Sequence[int]) -> list[str]:
        r"""
        What each token of a continuation adds to the text. A character that several tokens spell is the last one's, and the others add
        `""`: the texts, put together, are the text.

        Args:
            prompt (`Sequence[int]`): The tokens before.
            continuation (`Sequence[int]`): The tokens.

        Returns:
            `list[str]`: One for each token of the continuation.
        """
        ids = [*prompt, *continuation]
        shown, start = max(0, len(prompt) - _CONTEXT), len(prompt)
        texts: list[str] = []
        for end in range(len(prompt) + 1, len(ids) + 1):
            before, now = self.decode(ids[shown:start]), self.decode(ids[shown:end])
            if now.endswith(_UNFINISHED) and end - start < _LONGEST and end < len(ids):
                texts.append("")
                continue
            texts.append(now[len(before) :])
            shown, start = start, end
        return texts
