"""Tokenizers of the kinds in use, trained in milliseconds on invented words, and changed on purpose."""

from __future__ import annotations

import functools
import json
import random
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": _LETTERS + r"|\p{N}{1,3}|" + _REST,
    "qwen": _LETTERS + r"|\p{N}|" + _REST,
}
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
NUMBERS = "0123456789²³½٢٣٤٦٨٩①Ⅷ"
Pairs = Sequence[tuple[str, str]]


def lines(seed: int, count: int = 200) -> list[str]:
    """Sentences of invented words: few letters, so that merges compete for them, of several scripts, with numbers and signs."""
    draw = random.Random(seed)
    letters = ["aeosntrl", "aeosntrl", "aeosntrl", "ждиф", "éèç", "مسل", "日本語"]
    words = ["".join(draw.choices(draw.choice(letters), k=draw.randint(1, 5))) for _ in range(80)]
    return [" ".join(_word(draw, words) for _ in range(draw.randint(3, 12))) for _ in range(count)]


def _word(draw: random.Random, words: Sequence[str]) -> str:
    kind, word = draw.random(), draw.choice(words[: draw.randint(1, len(words))])
    if kind < 0.1:
        return "".join(draw.choices(NUMBERS, k=draw.randint(1, 6)))
    if kind < 0.2:
        return word + draw.choice([".", ",", "'s", "'re", "'t" + word, "\n", "  ", "--", "(", "🙂", "\u0301"])
    return word.capitalize() if kind < 0.3 else word


def texts(seed: int, count: int = 120) -> list[str]:
    """Other texts of such words, and nonsense of their letters, in composed characters."""
    draw = random.Random(seed)
    every = "aeosntrlждифéèçمسل日本語 .'\n-" + NUMBERS
    nonsense = ["".join(draw.choices(every, k=draw.randint(1, 20))) for _ in range(count)]
    return [unicodedata.normalize("NFC", text) for text in [*lines(seed + 1000, count), *nonsense]]


def splits(kind: str) -> Any:
    if kind in ("sentencepiece", "unigram"):
        return pre_tokenizers.Metaspace(prepend_scheme="first")
    split = pre_tokenizers.Split(Regex(PATTERNS.get(kind, kind)), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def finished(made: Tokenizer, kind: str) -> Any:
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(pieces) if kind in ("sentencepiece", "unigram") else decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", padding_side="left")


@functools.cache
def trained(kind: str, size: int, seed: int) -> Any:
    """A tokenizer trained on sentences."""
    made = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE())
    made.pre_tokenizer = splits(kind)
    options: dict[str, Any] = {"vocab_size": size, "special_tokens": ["<pad>", "<eos>"], "show_progress": False}
    if kind == "unigram":
        trainer: Any = trainers.UnigramTrainer(unk_token="<unk>", **options)
    else:
        trainer = trainers.BpeTrainer(initial_alphabet=[] if kind == "sentencepiece" else BYTES, **options)
    made.train_from_iterator(lines(seed), trainer)
    return finished(made, kind)


def merges_of(tokenizer: Any) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def letters_of(kind: str, seeds: Iterable[int]) -> list[str]:
    if kind != "sentencepiece":
        return BYTES
    return ["▁", *sorted({letter for seed in seeds for line in lines(seed) for letter in line if letter not in " \n"})]


def extended(merges: Pairs, count: int, kind: str, seed: int, letters: Sequence[str] = BYTES) -> list[tuple[str, str]]:
    """Some merges and behind them others, out of those that a tokenizer of the kind learns from other sentences."""
    known = {*letters, *(left + right for left, right in merges)}
    more = []
    for left, right in merges_of(trained(kind, len(letters) + 400, seed)):
        if len(more) < count and left in known and right in known and left + right not in known:
            known.add(left + right)
            more.append((left, right))
    return [*merges, *more]


def all_pairs(merges: Pairs) -> list[tuple[str, str]]:
    """As a list converted from ranks has them: for each token every pair of tokens that it could be made of."""
    rank = {token: k for k, token in enumerate([*BYTES, *(left + right for left, right in merges)])}
    pairs = []
    for token in list(rank)[len(BYTES) :]:
        halves = [(token[:k], token[k:]) for k in range(1, len(token)) if token[:k] in rank and token[k:] in rank]
        pairs += sorted(halves, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return pairs


def without_numbers(merges: Pairs) -> list[tuple[str, str]]:
    """Those that a tokenizer learns to which every digit is a piece of its own."""
    ascii_digits = set("0123456789")
    return [pair for pair in merges if not (len("".join(pair)) > 1 and set("".join(pair)) & ascii_digits)]


def assembled(
    kind: str,
    merges: Pairs,
    *,
    letters: Sequence[str] = BYTES,
    shuffled: int | None = None,
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    added: Sequence[str | AddedToken] = (),
    **model: Any,
) -> Any:
    """A BPE of these merges, whose ids may be shuffled."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "sentencepiece" else []
    names = list(dict.fromkeys([*fallback, *letters, *(left + right for left, right in merges)]))
    if shuffled is not None:
        random.Random(shuffled).shuffle(names)
    vocab = {name: k for k, name in enumerate(["<pad>", "<eos>", *names])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=list(merges), byte_fallback=bool(fallback), **model))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer or splits(kind)
    made.add_tokens(list(added))
    return finished(made, kind)


def composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def words(names: Sequence[str]) -> Any:
    """A tokenizer of whole words."""
    made = Tokenizer(models.WordLevel({name: k for k, name in enumerate(["<pad>", "<eos>", *names])}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")


def names_of(text: str) -> str:
    """A text in the letters of a byte-level BPE."""
    return "".join(
        piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    )
