"""How a member reads a prompt: as its tokenizer cuts it, up to where the continuation can no longer change the cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .alphabet import NOTHING, Alphabet
from .covers import Covers
from .texts import State

_UNSETTLED = 4  # tokens at a prompt's end that are read symbol by symbol, since what follows may merge with them

Cut = tuple[list[int], int, list[int]]  # tokens, how many of the last ones are read symbol by symbol, and their symbols


def in_front(tokenizer: Any, tokens: Sequence[bytes | None]) -> bytes:
    """What a tokenizer, whose tokens are these bytes, puts in front of every text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return b"".join(tokens[i] or b"" for i in plain)[:-1]


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
        self._space, self._doubled = in_front(tokenizer, tokens), self._spelled(self._cut(" a"))[:-2] != b""

    def enter(self, prompts: Sequence[Sequence[int]]) -> list[tuple[State, list[int]]]:
        """For each prompt the state at a token's end in it, and the symbols of the prompt that follow it; read together."""
        begun = [i for i, ids in enumerate(prompts) if not self.alphabet.has_ended(ids)]
        cuts = self._settled([prompts[i] for i in begun])
        contexts = self.covers.read_ahead([ids for ids, *_ in cuts], [count for _, count, _ in cuts])
        entered: list[tuple[State, list[int]]] = [(State([]), []) for _ in prompts]
        for i, state, (*_, symbols) in zip(begun, self.covers.start(contexts), cuts, strict=True):
            entered[i] = state, symbols
        return entered

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

    def _settled(self, prompts: Sequence[Sequence[int]]) -> list[Cut]:
        """The prompts' tokens, and the symbols of those that what follows may change. If it may change all, they follow a begin of text."""
        if not self.as_tokens:
            return [self._nothing() for _ in prompts]
        if self.as_given:
            return [self._open(list(prompt), None, b"") for prompt in prompts]
        texts = [self.alphabet.text(prompt, self._end) for prompt in prompts]
        readable = [_readable(text) for text in texts]
        cuts = iter(self._cuts([each[0].decode() for each in readable if each]))
        settled = []
        for prompt, text, each in zip(prompts, texts, readable, strict=True):
            ids, in_front = next(cuts) if each else [], self._in_front(text)
            if not text and all(self.alphabet.spelled(i) == NOTHING for i in prompt):
                settled.append(self._nothing())
            elif each is None or not ids:  # no text to cut
                settled.append((self._first(), 0, self.alphabet.cut(in_front + text)))
            else:
                settled.append(self._open(self._begun(ids), in_front + each[0], each[1]))
        return settled

    def _nothing(self) -> Cut:
        """Of an empty prompt: a begin of text, and what is in front of every text, where what follows does not have it."""
        in_front = b"" if self.as_given or self.alphabet.space else self._space
        return self._first(), 0, self.alphabet.cut(in_front)

    def _begun(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self._leading)] == self._leading else [*self._leading, *ids]

    def _open(self, ids: list[int], whole: bytes | None, rest: bytes) -> Cut:
        """Tokens of a prompt, those of its end as symbols; `whole` is the text that they are, `rest` what is behind it."""
        kept, tail, symbols = len(ids), b"", self.alphabet.cut(rest)
        while kept and len(ids) - kept < _UNSETTLED:
            token, spelled = self.tokens[ids[kept - 1]], self.spelled[ids[kept - 1]]
            if token is None or spelled is None or (whole is not None and not whole.endswith(token + tail)):
                break  # a special token, or one that the tokenizer changed the text for: it stands as it is
            tail, symbols, kept = token + tail, [*spelled, *symbols], kept - 1
        if not kept:
            return self._first(), 0, symbols
        # Where every token is one symbol, what follows merges with none of them.
        return (ids, 0, self.alphabet.cut(rest)) if self.covers.lexicon.is_plain else (ids, len(ids) - kept, symbols)

    def _cuts(self, texts: list[str]) -> list[list[int]]:
        options = dict.fromkeys(("add_special_tokens", "return_attention_mask", "return_token_type_ids"), False)
        return list(self.tokenizer(texts, **options)["input_ids"]) if texts else []

    def _cut(self, text: str) -> list[int]:
        return self._cuts([text])[0]

    def _spelled(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[i] or b"" for i in ids)


def _readable(text: bytes) -> tuple[bytes, bytes] | None:
    """A text up to its last letter, and what is there of half a letter, whose other bytes may follow; `None` if it is no text."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return (text[: error.start], text[error.start :]) if error.reason == "unexpected end of data" else None
    return text, b""
