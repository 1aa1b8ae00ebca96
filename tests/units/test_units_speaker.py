"""The tokenizer that writes units: of every text that units can write, with special tokens as they were."""

from __future__ import annotations

import pytest
from unit_members import PAIRS, cutters_of, tokenizer, tokens_of

from hf_eft.units import common_units, unit_tokenizer

TEXTS = ["ab", "abab bb", "bbaENDab", "a<more>bb", "b"]


@pytest.mark.parametrize("pair", PAIRS)
def test_texts_are_written_in_units(pair: str) -> None:
    cutter = tokenizer.__wrapped__(PAIRS[pair][0])
    cutter.add_special_tokens({"additional_special_tokens": ["<more>"]})  # which its model does not have
    units = common_units({**cutters_of(pair), "base": cutter})
    speaker = unit_tokenizer(cutter, units)
    assert speaker.all_special_ids == cutter.all_special_ids
    texts, special = tokens_of(PAIRS[pair][0]), set(cutter.all_special_ids)
    assert (speaker is cutter) == (set(texts) <= set(units.ids))
    for text in (text.replace("END", cutter.eos_token) for text in TEXTS):
        if set(text) & set(" ") and b" " not in units.texts:
            continue
        plain, found = (each(text)["input_ids"] for each in (cutter, speaker))
        assert set(found) <= {*units.ids, *special}
        assert [i for i in found if i in special] == [i for i in plain if i in special]
        spelled = [b"".join(texts.get(i, b"|") for i in ids) for ids in (plain, found)]
        assert spelled[0] == spelled[1] and speaker.decode(found) == cutter.decode(plain)


def test_a_token_that_was_added_is_written_as_text() -> None:
    """One that is no special token, and that not all members have: it is text, and no unit."""
    cutter = tokenizer.__wrapped__("bytes-many")
    cutter.add_tokens(["aab"])
    units = common_units({**cutters_of("bytes: shared"), "base": cutter})
    assert cutter("aab", add_special_tokens=False)["input_ids"] == [8]
    assert unit_tokenizer(cutter, units)("aab", add_special_tokens=False)["input_ids"] == [3, 5]
