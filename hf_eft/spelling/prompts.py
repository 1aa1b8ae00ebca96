"""How a member reads a prompt: as its tokenizer cuts it, up to where the continuation can no longer change the cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .alphabet import Alphabet
from .covers import Covers
from .texts import State

_UNSETTLED = 4  # tokens at a prompt's end that are read symbol by symbol, since what follows may merge with them

Cut = tuple[list[int], int, list[int]]  # tokens, how many of the last ones are read symbol by symbol, and their symbols


class PromptReader:
    r"""
    Finds the state after a prompt.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The member's tokenizer.
        tokens (`Sequence[bytes | None]`): The bytes of each of its tokens.
        spelled (`Sequence[Sequence[int] | None]`): The symbols of each of them.
        covers ([`Covers`]): What reads.
        alphabet ([`Alphabet`]): What prompts are given in.
        as_tokens (`bool`): Whether a prompt is read as the tokenizer cuts it, or symbol by symbol from its start.
        as_given (`bool`): Whether the ids of prompts are this tokenizer's, so that they are its cut.
    """

    def __init__(
        self,
        tokenizer: Any,
        tokens: Sequence[bytes | None],
        spelled: Sequence[Sequence[int] | None],
        covers: Covers,
        alphabet: Alphabet,
        as_tokens: bool,
        as_given: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.spelled = spelled
        self.covers = covers
        self.alphabet = alphabet
        self.as_tokens = as_tokens
        self.as_given = as_given
        self._end = (tokenizer.eos_token or "").encode()
        plain = self._cut("a")
        with_special = list(tokenizer("a")["input_ids"])
        count = next((i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain), 0)
        self._leading = with_special[:count]
        self._space, self._doubled = self._spelled(plain)[:-1], self._spelled(self._cut(" a"))[:-2] != b""

    def enter(self, prompts: Sequence[Sequence[int]]) -> list[tuple[State, list[int]]]:
        """For each prompt the state at a token's end in it, and the symbols of the prompt that follow it; read together."""
        cuts = [None if self.alphabet.has_ended(ids) else self._settled(ids) for ids in prompts]
        known = [cut for cut in cuts if cut is not None]
        read = iter(self.covers.start(self.covers.read_ahead([ids for ids, *_ in known], [count for _, count, _ in known])))
        return [(State([]), []) if cut is None else (next(read), cut[2]) for cut in cuts]

    def _in_front(self, text: bytes) -> bytes:
        """What the tokenizer puts in front of a text."""
        return b"" if text.startswith(b" ") and not self._doubled else self._space

    def _first(self) -> list[int]:
        """What a text begins with: what the tokenizer puts there or, as the first token must follow something, a begin or end of text."""
        known = [i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None]
        if not self._leading and not known:
            raise ValueError(
                f"A text cannot be read from its first byte: the tokenizer ({type(self.tokenizer).__name__}) has no begin and no end of "
                "text for its first token to follow. Set `tokenizer.bos_token`, or give a longer prompt."
            )
        return self._leading or known[:1]

    def _settled(self, prompt: Sequence[int]) -> Cut:
        """The prompt's tokens, and the symbols of those that what follows may change. If it may change all, they follow a begin of text."""
        if self.as_given and self.as_tokens:
            ids, whole, rest = list(prompt), None, b""
        else:
            text = self.alphabet.text(prompt, self._end) if self.as_tokens else b""
            if not text:  # what follows is in front of it already, if texts of the alphabet have it
                return self._first(), 0, [] if self.as_given or self.alphabet.space else self.alphabet.cut(self._space)
            try:
                readable, rest = text.decode(), b""
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    return self._first(), 0, self.alphabet.cut(self._in_front(text) + text)
                readable, rest = text[: error.start].decode(), text[error.start :]  # half a letter: its other bytes may follow
            whole, ids = self._in_front(text) + readable.encode(), self._cut(readable)
            if ids[: len(self._leading)] != self._leading:
                ids = [*self._leading, *ids]
        kept, tail, symbols = len(ids), b"", self.alphabet.cut(rest)
        while kept and len(ids) - kept < _UNSETTLED:
            token, spelled = self.tokens[ids[kept - 1]], self.spelled[ids[kept - 1]]
            if token is None or spelled is None or (whole is not None and not whole.endswith(token + tail)):
                break  # a special token, or one that the tokenizer changed the text for: it stands as it is
            tail, symbols, kept = token + tail, [*spelled, *symbols], kept - 1
        return (ids, len(ids) - kept, symbols) if kept else (self._first(), 0, symbols)

    def _cut(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _spelled(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[i] or b"" for i in ids)
