"""The merges that ever happen, and those that tokenizers share: of any lists of merges, on every short text."""

from __future__ import annotations

import itertools
import random

import pytest
import trained_cutters as cutters
from families import SEED

from hf_eft.units import common_units
from hf_eft.units.merges import view_of

LETTERS = "abc"
SHORT = ["".join(letters) for length in range(1, 6) for letters in itertools.product(LETTERS, repeat=length)]


def any_merges(draw: random.Random, count: int) -> list[tuple[str, str]]:
    """A list of merges as nobody learns them: several for one token, parts that come later than the whole, some that never happen."""
    known, merges = list(LETTERS), []
    for _ in range(count):
        pair = (draw.choice(known), draw.choice(known))
        if pair in merges or len("".join(pair)) > 5:
            continue
        known.append("".join(pair))
        merges.insert(len(merges) if draw.random() < 0.7 else draw.randint(0, len(merges)), pair)
    return merges


def changed(draw: random.Random, merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Some left out, some moved, some new ones."""
    kept = [pair for pair in merges if draw.random() < 0.85]
    for _ in range(draw.randint(0, 3)):
        if kept:
            kept.insert(draw.randint(0, len(kept) - 1), kept.pop(draw.randint(0, len(kept) - 1)))
    return kept


def closed(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those whose parts are tokens, as a vocabulary needs them."""
    known = {*LETTERS, *("".join(pair) for pair in merges)}
    kept = [pair for pair in merges if set(pair) <= known]
    return kept if len(kept) == len(merges) else closed(kept)


@pytest.mark.parametrize("seed", range(80))
def test_any_two_lists_of_merges(seed: int) -> None:
    draw = random.Random(f"{seed} {SEED}")
    first = any_merges(draw, draw.randint(2, 14))
    second = closed(changed(draw, first) + (any_merges(draw, 6) if seed % 2 else []))
    second = list(dict.fromkeys(second))
    pair = {
        "base": cutters.assembled("gpt2", first, shuffled=seed),
        "tuned": cutters.assembled("gpt2", second, ignore_merges=seed % 3 == 0),
    }
    found = common_units(pair)
    assert found.exact, found.reason
    for text in [*SHORT, *("".join(draw.choices(LETTERS, k=12)) for _ in range(120))]:
        by_member = []
        for name, tokenizer in pair.items():
            made = tokenizer.backend_tokenizer.model.tokenize(text)
            by_member.append([unit for token in made for unit in found.spelled[name][token.id] or ()])
        assert by_member[0] == by_member[1], (text, first, second)
        assert b"".join(found.texts[unit] for unit in by_member[0]).decode() == text


def test_every_member_makes_a_unit_as_one_token() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        merges = any_merges(draw, 12)
        pair = {"base": cutters.assembled("gpt2", merges), "tuned": cutters.assembled("gpt2", closed(merges[:-1]), shuffled=1)}
        found = common_units(pair)
        for k, (i, text) in enumerate(zip(found.ids, found.texts, strict=True)):
            assert found.spelled["base"][i] == (k,)
            if len(text) > 1:
                for tokenizer in pair.values():
                    assert len(tokenizer.backend_tokenizer.model.tokenize(text.decode())) == 1


def test_what_makes_a_token_is_one_merge_of_all_its_pairs() -> None:
    """`abc` is made of `ab` and `c`, though the list has `a` and `bc` before."""
    merges = [("a", "b"), ("a", "bc"), ("ab", "c"), ("b", "c")]
    view = view_of(cutters.assembled("gpt2", merges))
    assert list(view.merges) == [(b"a", b"b"), (b"ab", b"c"), (b"b", b"c")]
    assert view.irregular == []


def test_tokens_that_are_never_made_and_those_made_out_of_turn() -> None:
    merges = [("b", "c"), ("a", "b"), ("ab", "c"), ("cd", "e"), ("c", "d")]
    view = view_of(cutters.assembled("gpt2", merges))
    assert list(view.merges) == [(b"b", b"c"), (b"a", b"b"), (b"c", b"d")]  # `abc` becomes `a`, `bc`
    assert view.irregular == [b"cde"]


def test_a_list_of_all_pairs_is_the_list_of_one_pair() -> None:
    merges = cutters.merges_of(cutters.trained("gpt2", 700, 0))
    pairs = cutters.all_pairs(merges)
    assert len(pairs) > len(merges)
    one, every = view_of(cutters.assembled("gpt2", merges)), view_of(cutters.assembled("gpt2", pairs))
    assert one.merges == every.merges
    assert len(one.merges) == len(merges)


def test_merges_beyond_the_common_beginning() -> None:
    """`de` is shared although the lists differ before it, `bc` is not: `ab`, which only the base has, would take its `b`."""
    base = cutters.assembled("gpt2", [("a", "b"), ("b", "c"), ("d", "e")])
    tuned = cutters.assembled("gpt2", [("b", "c"), ("d", "e")])
    found = common_units({"base": base, "tuned": tuned})
    assert {text for text in found.texts if len(text) > 1} == {b"de"}
    assert found.exact and found.kind == "shared merges"
    base = cutters.assembled("gpt2", [("q", "q"), ("x", "b"), ("a", "b"), ("b", "c")])
    tuned = cutters.assembled("gpt2", [("x", "b"), ("b", "c")])
    found = common_units({"base": base, "tuned": tuned})
    assert {text for text in found.texts if len(text) > 1} == {b"xb"}, "of those that end in `b` one is shared, another is not"


def test_a_token_that_is_partly_made_of_what_the_base_lacks_has_no_units() -> None:
    base = cutters.assembled("gpt2", [("a", "b")], letters=list("ab"))
    tuned = cutters.assembled("gpt2", [("a", "b"), ("ab", "c")], letters=list("abc"))
    found = common_units({"base": base, "tuned": tuned})
    names = tuned.get_vocab()
    assert not found.exact
    assert found.spelled["tuned"][names["ab"]] is not None
    assert found.spelled["tuned"][names["c"]] is found.spelled["tuned"][names["abc"]] is None
