"""Log-probabilities of an answer's tokens under the combination that the request asked for, in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..analysis.token_text import TokenTexts
from ..bytes.tokens import token_bytes

_NEVER = -9999.0  # OpenAI's number for what JSON has none: the logarithm of 0


@dataclass
class Entry:
    """A token, its log-probability, and the likeliest tokens in its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def entry(logits: torch.Tensor, token: int, count: int) -> Entry:
    r"""
    A token's entry.

    Args:
        logits (`torch.FloatTensor` of shape `(vocab,)`): The combination's, before anything changed them.
        token (`int`): The token that was chosen.
        count (`int`): How many others are wanted.
    """
    values = torch.log_softmax(logits.float(), dim=-1)
    top = values.topk(min(count, values.shape[0]))
    likeliest = [(i, _finite(v)) for v, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
    return Entry(token, _finite(values[token].item()), likeliest)


def _finite(value: float) -> float:
    return max(value, _NEVER)


class Spelling:
    """The texts and the bytes of a tokenizer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._texts = TokenTexts(tokenizer)
        try:
            self._bytes = token_bytes(tokenizer)
        except ValueError:  # a decoder that is not known: OpenAI's form has null for that
            self._bytes = []

    def text(self, token: int) -> str:
        """The text of a token by itself."""
        return self._texts.of(token).text

    def bytes(self, token: int) -> list[int] | None:
        """The bytes of a token, where they are known; those of a special token's name."""
        known = self._bytes[token] if token < len(self._bytes) else None
        if known is not None:
            return list(known)
        return list(self.text(token).encode()) if self._bytes else None

    def in_chat(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """`logprobs` of a chat's choice."""
        return {"content": [{**self._one(e.token, e.logprob), "top_logprobs": [self._one(*t) for t in e.top]} for e in entries]}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(token), "logprob": logprob, "bytes": self.bytes(token)}

    def in_completion(self, entries: Sequence[Entry], offset: int) -> dict[str, Any]:
        r"""
        `logprobs` of a completion's choice.

        Args:
            entries (`Sequence[Entry]`): Of the tokens.
            offset (`int`): How many characters of the answer were before them.
        """
        texts = [self.text(e.token) for e in entries]
        places = [offset + len("".join(texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [e.logprob for e in entries],
            "top_logprobs": [{self.text(token): logprob for token, logprob in e.top} for e in entries],
            "text_offset": places,
        }
