"""Where members need not agree on units, nobody says so: for each reason a text on which they would not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trained_cutters as cutters
from cutter_pairs import Pair, written
from tokenizers import AddedToken, normalizers, pre_tokenizers

from hf_eft.units import common, common_units
from hf_eft.units.cutting import Cut

WORDS = [("a", "b"), ("b", "."), ("a", "c"), ("Ġ", "1"), ("1", "2"), ("A", "b"), (".", "Ġ")]
ENDS = [("b", "."), ("a", "b")]
DIGITS = {"base": r"\p{N}{1,3}", "tuned": r"\p{N}"}


def plain(merges: Any = WORDS, kind: str = "gpt2", **options: Any) -> Any:
    return cutters.assembled(kind, merges, **options)


def whole() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


# By name: the pair, what is said, and a text.
CASES: dict[str, tuple[Callable[[], Pair], str, str]] = {
    "other pre-tokenization": (
        lambda: {"base": plain(ENDS), "tuned": plain(ENDS, pre_tokenizer=whole())},
        "'base' and 'tuned' cut texts at different places",
        "ab.",
    ),
    "digits that are not kept apart": (
        lambda: {"base": plain(), "tuned": plain(kind="qwen")},
        "'base' and 'tuned' cut texts at different places",
        "a 12",
    ),
    "digits that another alternative takes too": (
        lambda: {name: plain([("3", "a"), *ENDS], rf"\p{{N}}[a-z]+|{digits}|[a-z]+") for name, digits in DIGITS.items()},
        "'base' and 'tuned' cut texts at different places",
        "123ab",
    ),
    "a lower-casing normalizer": (
        lambda: {"base": plain(), "tuned": plain(normalizer=normalizers.Lowercase())},
        "the normalizers of 'base' and 'tuned' differ",
        "Ab",
    ),
    "dropout": (
        lambda: {"base": plain(), "tuned": plain(dropout=0.5)},
        "'tuned' leaves merges out at random (a dropout of 0.5)",
        "ab. " * 50,
    ),
    "parts of words that are marked": (
        lambda: {"base": plain(), "tuned": plain([], letters=[*cutters.BYTES, "##b"], continuing_subword_prefix="##")},
        "'tuned' marks parts of words by '##'",
        "ab",
    ),
    "Unigram": (
        lambda: {"base": cutters.trained("sentencepiece", 500, 0), "tuned": cutters.trained("unigram", 500, 0)},
        "the tokenizer of 'tuned' (Unigram) does not merge by rank",
        "aю",
    ),
    "white space that one has as added tokens": (
        lambda: {"base": plain([("Ġ", "Ġ"), ("Ġ", "a")]), "tuned": plain([("Ġ", "Ġ"), ("Ġ", "a")], added=[AddedToken("  ")])},
        "'tuned' cuts out '  ' before it merges, and others do not",
        "a  a",
    ),
    "added tokens that take the space": (
        lambda: {
            "base": plain([("Ġ", "<")], added=[AddedToken("tool", lstrip=True)]),
            "tuned": plain([("Ġ", "<")], added=[AddedToken("tool")]),
        },
        "'base' cuts out 'tool' before it merges, and others do not",
        "a tool",
    ),
    "letters that only one has": (
        lambda: {"base": plain(), "tuned": plain(ENDS, letters=[letter for letter in cutters.BYTES if letter != "c"])},
        "'base' and 'tuned' know different letters, and have no bytes in their place",
        "ac",
    ),
    "letters that are lost": (
        lambda: {"base": plain(), "tuned": plain(ENDS, letters=list("ab.Ġ12"), unk_token="<pad>")},
        "'tuned' writes '<pad>' for what it has no token for",
        "ac",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_members_that_would_not_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said, text = CASES[name]
    pair = make()
    found = common_units(pair)
    assert not found.exact and found.kind == "general"
    assert said in found.reason
    # What would come of it if it were taken for proved.
    monkeypatch.setattr(common, "_unproved", lambda *_: "")
    monkeypatch.setattr(common, "compare_cuts", lambda *_: Cut("one"))
    wrong = common_units(pair)
    assert wrong.exact
    units = [written(wrong, pair, member, text) for member in pair]
    assert units[0] != units[1]


def test_texts_that_are_left_out() -> None:
    """Members agree in composed characters, and where no marker is spelled out that only one has as a token; elsewhere not."""
    merges = [("Ċ", "a"), (">", "b"), ("Ã", "©")]
    composing = plain(merges, "qwen", normalizer=normalizers.NFC(), added=["<tool>"])
    pair = {"base": plain(merges, "llama3"), "tuned": composing}
    found = common_units(pair)
    assert found.exact
    assert "in composed characters (NFC), which 'tuned' makes of others" in found.reason
    assert "without the markers that only some have as tokens" in found.reason
    for text, alike in (("é", True), ("e\u0301", False), ("tool>b", True), ("<tool>b", False)):
        assert (written(found, pair, "base", text) == written(found, pair, "tuned", text)) is alike


def test_added_tokens_that_all_have_are_units() -> None:
    tokens = ["<tool>", AddedToken("two words", normalized=False), "ab."]  # the last is one that a member merges too
    more = [*WORDS, ("ab", ".")]
    pair = {"base": plain(more, added=tokens), "tuned": plain([("a", "b")], shuffled=3, added=tokens[::-1])}
    found = common_units(pair)
    assert found.exact, found.reason
    for text in ("<tool>", "two words", "ab."):
        assert text.encode() in found.texts
    for text in ("ab<tool>two words.", "a two words b"):
        assert written(found, pair, "base", text) == written(found, pair, "tuned", text)
        assert None not in written(found, pair, "base", text)


def test_special_tokens_have_no_units() -> None:
    pair = {"base": plain(), "tuned": plain([("a", "b")], shuffled=1)}
    found = common_units(pair)
    for name, tokenizer in pair.items():
        assert [found.spelled[name][i] for i in tokenizer.all_special_ids] == [None] * 2
        assert all(spelled for i, spelled in enumerate(found.spelled[name]) if i not in tokenizer.all_special_ids)
