"""How a byte-level member reads a prompt: as its tokenizer cuts it, up to where the continuation can no longer change the cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .covers import Covers, State

PAD, EOS, OFFSET = 0, 1, 3  # of `ByT5Tokenizer`: padding, end, unknown, then the bytes
_UNSETTLED = 4  # tokens at a prompt's end that are read byte by byte, since what follows may merge with them


class PromptReader:
    r"""
    Finds the state after a prompt.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The member's tokenizer.
        tokens (`Sequence[bytes | None]`): The bytes of each of its tokens.
        covers ([`Covers`]): What reads.
        as_tokens (`bool`): Whether a prompt is read as the tokenizer cuts it, or byte by byte from its start.
    """

    def __init__(self, tokenizer: Any, tokens: Sequence[bytes | None], covers: Covers, as_tokens: bool) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.covers = covers
        self.as_tokens = as_tokens
        self.starts: dict[bytes, State] = {}  # of texts that are read from their first byte
        plain = self._cut("a")
        with_special = list(tokenizer("a")["input_ids"])
        count = next((i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain), 0)
        self._leading = with_special[:count]
        self._space, self._doubled = self._spelled(plain)[:-1], self._spelled(self._cut(" a"))[:-2] != b""

    def enter(self, prompts: Sequence[Sequence[int]]) -> list[tuple[State, list[int]]]:
        """For each prompt the state at a token's end in it, and the bytes of the prompt that follow it; read together."""
        cuts = [self._cut_at_token(ids) for ids in prompts]
        tokens = [cut[0] for cut in cuts if isinstance(cut, tuple)]
        read = iter(self.covers.start(self.covers.read([None] * len(tokens), tokens, [0.0] * len(tokens))))
        entered: list[tuple[State, list[int]]] = []
        for cut in cuts:
            if isinstance(cut, tuple):
                entered.append((next(read), list(cut[1])))
            elif cut is None:
                entered.append((State([]), []))
            else:
                entered.append((self._from_first_byte(cut), list(cut)))
        return entered

    def _cut_at_token(self, ids: Sequence[int]) -> tuple[list[int], bytes] | bytes | None:
        """Its tokens and the bytes behind them; all its bytes, where it is read from the first one; `None` for a row that is padded."""
        if EOS in ids and ids[-1] == PAD:
            return None  # it has ended, and others go on
        text = self._as_text(ids)
        return (self._settled(text) if self.as_tokens else None) or text

    def _from_first_byte(self, text: bytes) -> State:
        """The state in front of a text."""
        in_front = b"" if text.startswith(b" ") and not self._doubled else self._space
        if in_front not in self.starts:
            [context] = self.covers.read([None], [self._first()], [0.0])
            [state] = self.covers.start([context])
            for byte in in_front:
                [state] = self.covers.advance([state], [byte])
            self.starts[in_front] = state
        return self.starts[in_front]

    def _first(self) -> list[int]:
        """What a text begins with: what the tokenizer puts there or, as the first token must follow something, a begin or end of text."""
        known = [i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None]
        if not self._leading and not known:
            raise ValueError(
                f"A text cannot be read from its first byte: the tokenizer ({type(self.tokenizer).__name__}) has no begin and no end of "
                "text for its first token to follow. Set `tokenizer.bos_token`, or give a longer prompt."
            )
        return self._leading or known[:1]

    def _as_text(self, ids: Sequence[int]) -> bytes:
        if any(i < OFFSET and i != EOS for i in ids):
            raise ValueError("A prompt has padding in it that its `attention_mask` does not say is padding.")
        end = (self.tokenizer.eos_token or "").encode()
        return b"".join(end if i == EOS else bytes([i - OFFSET]) for i in ids)

    def _settled(self, text: bytes) -> tuple[list[int], bytes] | None:
        """Tokens of the prompt that stand whatever follows, and the bytes behind them; `None` if there are none."""
        try:
            readable, rest = text.decode(), b""
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return None
            readable, rest = text[: error.start].decode(), text[error.start :]  # half a letter: its other bytes may follow
        ids = self._cut(readable)
        if ids[: len(self._leading)] != self._leading:
            ids = [*self._leading, *ids]
        whole = readable.encode()
        tail, kept = b"", len(ids)
        while kept and len(ids) - kept < _UNSETTLED:
            token = self.tokens[ids[kept - 1]]
            if token is None or not whole.endswith(token + tail):
                break  # a special token, or one that the tokenizer changed the text for: it stands as it is
            tail, kept = token + tail, kept - 1
        return (ids[:kept], tail + rest) if kept else None

    def _cut(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _spelled(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[i] or b"" for i in ids)
