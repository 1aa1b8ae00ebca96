"""Tiny vocabularies, and the oracle of a model over bytes: all token sequences, one by one, without a cache and without this library."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from families import BOS, EOS, build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>"]

# By name, the tokens behind the special ones: what the tokenizer calls them, and which bytes they are.
VOCABULARIES: dict[str, list[tuple[str, bytes]]] = {
    "overlapping": [(t, t.encode()) for t in ("a", "b", "ab", "ba", "aba")],
    "nested": [(t, t.encode()) for t in ("a", "b", "aa", "aaa", "aab", "bb")],
    "letters": [("a", b"a"), ("Ã", b"\xc3"), ("©", b"\xa9"), ("Ã©", b"\xc3\xa9"), ("aÃ", b"a\xc3")],
    "sentencepiece": [
        *[("<0x20>", b" "), ("<0x61>", b"a"), ("<0x62>", b"b"), ("▁", b" "), ("a", b"a"), ("b", b"b")],
        *[("▁a", b" a"), ("ab", b"ab"), ("▁ab", b" ab")],
    ],
}
ALPHABETS = {"overlapping": b"ab", "nested": b"ab", "letters": b"a\xc3\xa9", "sentencepiece": b" ab"}
_MERGES = {
    "overlapping": [("a", "b"), ("ab", "a"), ("b", "a")],
    "nested": [("a", "a"), ("b", "b"), ("aa", "a"), ("aa", "b")],
    "letters": [("Ã", "©"), ("a", "Ã")],
    "sentencepiece": [("▁", "a"), ("▁a", "b"), ("a", "b")],
}


def tokenizer(name: str) -> Any:
    """A tokenizer with the tokens of a vocabulary: a byte-level BPE, or one with SentencePiece's conventions."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, *(token for token, _ in VOCABULARIES[name])])}
    if name == "sentencepiece":
        made = Tokenizer(models.BPE(vocab=vocab, merges=_MERGES[name], byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        made = Tokenizer(models.BPE(vocab=vocab, merges=_MERGES[name]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def model(name: str, seed: int, family: str = "llama") -> Any:
    """A model over the tokens of a vocabulary."""
    return build(family, seed, vocab_size=len(SPECIAL) + len(VOCABULARIES[name]))


class Enumeration:
    r"""
    `P(text ...)` after some ids, by going through all ways to write the text.

    Args:
        following (`Callable`): The log-probs of what follows a sequence of ids.
        tokens (`Mapping[int, bytes]`): The text of each id.
        end (`int`): The id that ends a text.
        start (`Sequence[int]`): What the text comes after.
    """

    def __init__(
        self, following: Callable[[tuple[int, ...]], torch.Tensor], tokens: Mapping[int, bytes], end: int, start: Sequence[int]
    ) -> None:
        self.following = functools.cache(following)
        self.tokens = tokens
        self.end = end
        self.start = tuple(start)

    def joint(self, text: bytes) -> float:
        """`P(text ...)`."""
        return self._covering(text, self.start, 0.0)

    def ended(self, text: bytes) -> float:
        """`P(text, end)`."""
        return sum(
            float((lp + self.following(seq)[self.end]).exp()) for seq, lp in self._exactly(text, self.start, torch.tensor(0.0))
        )

    def next(self, text: bytes, alphabet: bytes) -> torch.Tensor:
        """The distribution of the next byte out of an alphabet, and of the end."""
        joint = [*(self.joint(text + bytes([byte])) for byte in alphabet), self.ended(text)]
        return torch.tensor(joint, dtype=torch.float64) / sum(joint)

    def _covering(self, text: bytes, sequence: tuple[int, ...], log_prob: float) -> float:
        if not text:
            return float(torch.tensor(log_prob, dtype=torch.float64).exp())
        total = 0.0
        for i, token in self.tokens.items():
            after = log_prob + float(self.following(sequence)[i])
            if token.startswith(text):
                total += float(torch.tensor(after, dtype=torch.float64).exp())
            elif text.startswith(token):
                total += self._covering(text[len(token) :], (*sequence, i), after)
        return total

    def _exactly(self, text: bytes, sequence: tuple[int, ...], log_prob: Any) -> Any:
        if not text:
            yield sequence, log_prob
        for i, token in self.tokens.items():
            if text.startswith(token) and text:
                yield from self._exactly(text[len(token) :], (*sequence, i), log_prob + self.following(sequence)[i])


class Oracle(Enumeration):
    """Of a model, whose tokens are those of a vocabulary, by name, or given."""

    def __init__(self, model: Any, tokens: str | Mapping[int, bytes], start: Sequence[int] = (BOS,), end: int = EOS) -> None:
        if isinstance(tokens, str):
            tokens = {i + len(SPECIAL): text for i, (_, text) in enumerate(VOCABULARIES[tokens])}

        def following(sequence: tuple[int, ...]) -> torch.Tensor:
            with torch.no_grad():
                logits = model(torch.tensor([sequence]), use_cache=False).logits[0, -1].double()
            logits[[i for i in range(len(logits)) if i not in tokens and i != end]] = -torch.inf  # never generated
            return logits.log_softmax(-1)

        super().__init__(following, tokens, end, start)
