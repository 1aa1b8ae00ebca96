"""Units: whatever a text is, members that are said to agree write the same units of it, and those are its bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trained_cutters as cutters
from families import SEED
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from hf_eft.units import CommonUnits, common_units

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


EXACT: dict[str, tuple[str, Callable[[], Pair]]] = {
    "same, other ids": ("same", same),
    "small contained in base": ("contained", functools.partial(contained, "tuned")),
    "base contained in small": ("contained", functools.partial(contained, "base")),
    "GPT-2, shared": ("shared merges", functools.partial(shared, "gpt2")),
    "Qwen, shared": ("shared merges", functools.partial(shared, "qwen", 40, 120, 3)),
    "SentencePiece, shared": ("shared merges", functools.partial(shared, "sentencepiece")),
    "SentencePiece, other letters": ("shared merges", other_letters),
    "GPT-2, learnt apart": ("shared merges", functools.partial(apart, "gpt2")),
    "Llama-3 and Qwen": ("digits", digits),
    "Qwen and Llama-3": ("digits", functools.partial(digits, "qwen", "llama3")),
    "GPT-2 and itself": ("same", lambda: dict.fromkeys(("base", "tuned"), cutters.trained("gpt2", 500, 0))),
}


@functools.cache
def made(name: str) -> tuple[Pair, CommonUnits]:
    pair = EXACT[name][1]()
    return pair, common_units(pair)


def written(found: CommonUnits, pair: Pair, name: str, text: str) -> list[int | None]:
    """The units of the tokens that a member's tokenizer makes of a text; `None` for a token without."""
    ids = pair[name](text, add_special_tokens=False)["input_ids"]
    return [unit for i in ids for unit in (found.spelled[name][i] or (None,))]


def agree(found: CommonUnits, pair: Pair, text: str) -> None:
    by_member = {name: written(found, pair, name, text) for name in pair}
    first = by_member["base"]
    assert all(units == first for units in by_member.values()), text
    spelled = b"".join(found.texts[unit] for unit in first if unit is not None)
    assert spelled.decode().removeprefix(" ") == text.removeprefix(" "), (
        "the units are the text, with SentencePiece's space in front"
    )


@pytest.mark.parametrize("name", EXACT)
def test_members_agree_on_the_units_of_every_text(name: str) -> None:
    pair, found = made(name)
    assert found.exact, found.reason
    assert found.kind == EXACT[name][0]
    for text in cutters.texts(50 + SEED):
        agree(found, pair, text)


@pytest.mark.parametrize("name", ["SentencePiece, other letters", "Llama-3 and Qwen", "GPT-2, learnt apart"])
def test_members_agree_on_what_hypothesis_finds(name: str) -> None:
    pair, found = made(name)
    letters = st.one_of(st.sampled_from("aeosnt ' ждифé日本" + cutters.NUMBERS), st.characters(codec="utf-8"))

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink])
    @given(st.text(letters, max_size=12))
    def look(text: str) -> None:
        text = cutters.composed(text)
        if "\x00" not in text and "▁" not in text:
            agree(found, pair, text)

    look()
