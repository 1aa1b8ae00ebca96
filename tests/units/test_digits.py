"""Where members cut digits differently: which regular expressions keep digits apart, and units of digits in any script."""

from __future__ import annotations

import itertools
import random

import pytest
import trained_cutters as cutters
from cutter_pairs import digits, written
from families import SEED
from test_shared_merges import changed

from hf_eft.units import common_units
from hf_eft.units.cutting import alternatives, takes_no_digit
from hf_eft.units.digits import digit_role

# Digits of one, two and three bytes, and letters that share bytes with them.
LETTERS = "12²³٢①aéل"
TEXTS = ["".join(each) for length in (1, 2, 3) for each in itertools.product(LETTERS, repeat=length)]


def any_merges(draw: random.Random, count: int) -> list[tuple[str, str]]:
    """Merges of bytes of these letters, inside letters and across them."""
    text = cutters.names_of("".join(draw.choices(LETTERS, k=60)))
    merges: dict[str, tuple[str, str]] = {}
    known = set(text)
    while len(merges) < count:
        at = draw.randrange(len(text) - 4)
        size, cut = draw.randint(2, 4), draw.randint(1, 3)
        pair = (text[at : at + cut], text[at + cut : at + size])
        if cut < size and set(pair) <= known and "".join(pair) not in known:
            known.add("".join(pair))
            merges["".join(pair)] = pair
    return list(merges.values())


def closed(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    known, kept = set(cutters.BYTES), []
    for pair in merges:
        if set(pair) <= known:
            known.add("".join(pair))
            kept.append(pair)
    return kept


@pytest.mark.parametrize("seed", range(30))
def test_members_agree_on_digits_of_any_script(seed: int) -> None:
    draw = random.Random(f"{seed} {SEED}")
    first = any_merges(draw, draw.randint(6, 24))
    second = first if seed % 2 else closed(changed(draw, first))
    pair = {"base": cutters.assembled("llama3", first), "tuned": cutters.assembled("qwen", second, shuffled=seed)}
    found = common_units(pair)
    assert found.exact and found.kind == "digits"
    for text in [*TEXTS, *("".join(draw.choices(LETTERS, k=9)) for _ in range(150))]:
        units = written(found, pair, "base", text)
        assert units == written(found, pair, "tuned", text), (text, first, second)
        assert b"".join(found.texts[unit] for unit in units if unit is not None).decode() == text


def test_merges_across_digits_cost_letters_nothing() -> None:
    """`\\xa2\\xd9`, from one Arabic digit into the next, is done before `\\xd9\\x84`, a letter; both are in both tokenizers."""
    across, letter, word = (("¢", "Ù"), ("Ù", "Ħ"), ("ÙĦ", "ÙĦ"))
    assert cutters.names_of("٢ل") == "Ù¢ÙĦ"
    pair = {kind: cutters.assembled(kind, [across, letter, word]) for kind in ("llama3", "qwen")}
    found = common_units(pair)
    assert "لل".encode() in found.texts and "ل".encode() in found.texts
    assert b"\xa2\xd9" not in found.texts


def test_most_of_a_common_beginning_is_shared() -> None:
    pair = digits()
    found = common_units(pair)
    merged = cutters.without_numbers(cutters.merges_of(cutters.trained("llama3", 700, 0))[:250])
    assert sum(len(text) > 1 for text in found.texts) > 0.9 * len(merged)


def test_alternatives_of_a_pattern() -> None:
    assert alternatives(r"(?i:'s|'t)|[a|b]|\||\p{N}{1,3}|[^\]|]+") == ["(?i:'s|'t)", "[a|b]", r"\|", r"\p{N}{1,3}", r"[^\]|]+"]


@pytest.mark.parametrize("kind", ["llama3", "qwen"])
def test_all_but_one_alternative_of_the_known_patterns_take_no_digit(kind: str) -> None:
    taking = [part for part in alternatives(cutters.PATTERNS[kind]) if not takes_no_digit(part)]
    assert taking == [r"\p{N}{1,3}" if kind == "llama3" else r"\p{N}"]


@pytest.mark.parametrize(
    "pattern",
    [r"\S+", r".", r"[^\s]+", r"\w", r"[0-9]", r"7", r" ?\p{N}", r"\p{Nd}", r"[!-~]", r"(?<=\s)a", "½", r"[\p{L}\p{N}]", r"\d"],
)
def test_what_may_take_a_digit(pattern: str) -> None:
    assert not takes_no_digit(pattern)


@pytest.mark.parametrize(
    "pattern", [r"[\p{Lu}\p{M}]*[\p{Ll}]+(?i:'s|'t)?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s+(?!\S)", r"[^\p{N}]"]
)
def test_what_takes_none(pattern: str) -> None:
    assert takes_no_digit(pattern)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (b"a", ("elsewhere", False)), (b"7", ("within", True)), (b" the", ("elsewhere", False)), (b"77", ("digits", True)),
        (b" 7", ("never", True)), ("²".encode(), ("within", True)), ("²³".encode(), ("digits", True)), ("é²".encode(), ("never", True)),
        (b"\xc2", ("within", False)), (b"\xb2", ("within", False)), (b"\xb2\xc2", ("across", False)),
        ("²".encode() + b"\xc2", ("across", True)), (b"\xb2" + "²".encode(), ("across", True)), (b"\xd0", ("elsewhere", False)),
        (b"\xb2\xd0", ("elsewhere", False)), ("²".encode() + b"\xd0", ("never", True)), ("ж".encode() + b"\xc2", ("elsewhere", False)),
        (b"\xb2a", ("elsewhere", False)), (b"\x91\xa0", ("within", False)), ("ж".encode(), ("elsewhere", False)),
    ],
)  # fmt: skip
def test_what_tokens_of_bytes_can_be_part_of(token: bytes, expected: tuple[str, bool]) -> None:
    assert digit_role(token) == expected
