"""Units: whatever a text is, members that are said to agree write the same units of it, and those are its bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import trained_cutters as cutters
from cutter_pairs import Pair, apart, contained, digits, other_letters, same, shared, written
from families import SEED
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hf_eft.units import CommonUnits, common_units

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
