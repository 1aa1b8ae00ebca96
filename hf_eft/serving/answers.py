"""An answer as it comes: tokens become text, stop strings end it and are no part of it, calls of tools and thoughts are told apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from .logprobs import Entry
from .tools import Call, Parser, Part, Thought

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoding makes of bytes that are no character yet
_LONGEST = 4  # tokens that one character may take: after as many, the text really has a replacement character

STOP, LENGTH, CALLS = "stop", "length", "tool_calls"


@dataclass
class Piece:
    """A part of an answer: some text, some thinking, a call, or the log-probabilities of tokens alone."""

    text: str = ""
    reasoning: str = ""
    call: Call | None = None
    entries: list[Entry] = field(default_factory=list)


class Decoder:
    r"""
    Makes text of tokens one by one. All pieces together are what the tokenizer makes of all tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        special (`bool`): Whether special tokens are part of the text.
    """

    def __init__(self, tokenizer: Any, special: bool) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._ids: list[int] = []  # those that are still needed
        self._told = 0  # of these, whose text was returned

    def feed(self, token: int) -> str:
        """What a token adds to the text, with that of tokens before it whose character it ends."""
        self._ids.append(token)
        return self._text(final=len(self._ids) - self._told >= _LONGEST)

    def close(self) -> str:
        """What is left."""
        return self._text(final=True) if self._told < len(self._ids) else ""

    def _text(self, final: bool) -> str:
        before, now = self._decode(self._ids[: self._told]), self._decode(self._ids)
        if now.endswith(_UNFINISHED) and not final:
            return ""
        new = now[len(before) :]
        if new:  # what is behind is decoded together with these tokens: the space before a first word may be dropped
            self._ids = self._ids[self._told :]
        self._told = len(self._ids)
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not self._special)) if ids else ""


class Stops:
    """Lets text through until one of some strings comes, and holds back what could be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """What of the text before and this one can be told."""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            told, self._held = self._held[: min(places)], ""
            return told
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told

    def close(self) -> str:
        """What was held back."""
        told, self._held = self._held, ""
        return told


class Answer:
    r"""
    One answer to a request.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        ends (`Collection[int]`): The tokens that end it.
        limit (`int`): How many tokens it may have.
        stops (`Sequence[str]`): The texts that end it.
        parser ([`Parser`], *optional*): What tells calls and thoughts from the text.
        one_call (`bool`, *optional*, defaults to `False`): Whether the first call ends it.
    """

    def __init__(
        self,
        tokenizer: Any,
        ends: Collection[int],
        limit: int,
        stops: Sequence[str],
        parser: Parser | None = None,
        one_call: bool = False,
    ) -> None:
        self._decoder = Decoder(tokenizer, special=parser is not None)
        self._stops = Stops(stops)
        self._ends, self._limit, self._parser, self._one_call = ends, limit, parser, one_call
        self._waiting: list[tuple[int, Entry]] = []  # entries whose text was not told yet, and where it begins
        self._decoded = 0  # characters
        self._let_through = 0
        self._called = False
        self.tokens: list[int] = []
        self.finish: str | None = None

    def feed(self, token: int, entry: Entry | None = None) -> list[Piece]:
        """What a token adds. After the last one, `finish` says why it was."""
        self.tokens.append(token)
        ended = token in self._ends
        text = self._decoder.feed(token)
        if entry is not None and not ended:
            self._waiting.append((self._decoded, entry))
        self._decoded += len(text)
        pieces = self._tell(self._stops.feed(text))
        if self._one_call and self._called:
            self.finish = CALLS
        elif ended or self._stops.found:
            self.finish = STOP
        elif len(self.tokens) >= self._limit:
            self.finish = LENGTH
        if self.finish is not None:
            pieces += self._close()
        return pieces

    def cut(self) -> list[Piece]:
        """The rest of an answer that ends for another reason than its tokens: its time, say."""
        self.finish = LENGTH
        return self._close()

    def _close(self) -> list[Piece]:
        pieces = []
        if not self._stops.found and self.finish != CALLS:
            rest = self._stops.feed(self._decoder.close())
            pieces = self._tell(rest if self._stops.found else rest + self._stops.close())
            if self._stops.found:
                self.finish = STOP
        if self._parser is not None and self.finish != CALLS:
            pieces += self._noted(self._parser.close())
        if left := [entry for at, entry in self._waiting if at < self._let_through or not self._stops.found]:
            pieces.append(Piece(entries=left))
        if self._called:
            self.finish = CALLS
        return pieces

    def _tell(self, text: str) -> list[Piece]:
        if not text:
            return []
        self._let_through += len(text)
        entries = [entry for at, entry in self._waiting if at < self._let_through]
        self._waiting = [each for each in self._waiting if each[0] >= self._let_through]
        pieces = [Piece(text)] if self._parser is None else self._noted(self._parser.feed(text))
        if entries:
            if not pieces:
                pieces = [Piece()]
            pieces[0].entries = entries
        return pieces

    def _noted(self, parts: list[Part]) -> list[Piece]:
        pieces = []
        for part in parts:
            if isinstance(part, Call):
                if self._one_call and self._called:
                    continue
                self._called = True
                pieces.append(Piece(call=part))
            else:
                pieces.append(Piece(reasoning=part) if isinstance(part, Thought) else Piece(part))
        return pieces
