"""Pairs of tokenizers whose members write the same units of every text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trained_cutters as cutters
from tokenizers import normalizers

from hf_eft.units import CommonUnits

Pair = Mapping[str, Any]


def shared(kind: str, first: int = 150, more: int = 60, seed: int = 0) -> Pair:
    """Two tokenizers whose first merges are the same, with others behind."""
    letters = cutters.letters_of(kind, (seed, seed + 1, seed + 2))
    merges = [
        pair for pair in cutters.merges_of(cutters.trained(kind, 700, seed))[:first] if set("".join(pair)) <= set(letters)
    ]
    return {
        name: cutters.assembled(kind, cutters.extended(merges, more, kind, other, letters), letters=letters, shuffled=other)
        for name, other in (("base", seed + 1), ("tuned", seed + 2))
    }


def contained(smaller: str) -> Pair:
    merges = cutters.merges_of(cutters.trained("gpt2", 700, 0))
    sizes = {"base": len(merges), "tuned": len(merges)} | {smaller: 120}
    return {name: cutters.assembled("gpt2", merges[:size], shuffled=size) for name, size in sizes.items()}


def digits(base: str = "llama3", tuned: str = "qwen") -> Pair:
    merges = cutters.merges_of(cutters.trained("llama3", 700, 0))[:250]
    longer = cutters.all_pairs(cutters.extended(merges, 60, "llama3", 1))
    other = cutters.extended(cutters.without_numbers(merges), 60, "qwen", 2)
    made = {
        "llama3": cutters.assembled("llama3", longer, ignore_merges=True),
        "qwen": cutters.assembled("qwen", other, shuffled=1, normalizer=normalizers.NFC(), added=["<tool>"]),
    }
    return {"base": made[base], "tuned": made[tuned]}


def apart(kind: str, seed: int = 0) -> Pair:
    """Two tokenizers that learnt from different sentences."""
    return {"base": cutters.trained(kind, 500, seed), "tuned": cutters.trained(kind, 500, seed + 1)}


def same() -> Pair:
    merges = cutters.merges_of(cutters.trained("gpt2", 500, 0))
    return {name: cutters.assembled("gpt2", merges, shuffled=k) for k, name in enumerate(("base", "tuned", "reference"))}


def other_letters() -> Pair:
    """SentencePiece's kind, where each has characters that the other writes in bytes."""
    merges = cutters.merges_of(cutters.trained("sentencepiece", 300, 0))
    letters = cutters.letters_of("sentencepiece", [0])
    made = {}
    for name, missing in (("base", "日é"), ("tuned", "本aأ")):
        known = [letter for letter in letters if letter not in missing]
        kept = [pair for pair in merges if set("".join(pair)) <= set(known)]
        made[name] = cutters.assembled("sentencepiece", kept, letters=known)
    return made


def written(found: CommonUnits, pair: Pair, name: str, text: str) -> list[int | None]:
    """The units of the tokens that a member's tokenizer makes of a text; `None` for a token without."""
    ids = pair[name](text, add_special_tokens=False)["input_ids"]
    return [unit for i in ids for unit in (found.spelled[name][i] or (None,))]
