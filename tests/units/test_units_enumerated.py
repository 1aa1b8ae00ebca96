"""Probabilities of texts of units are those of exhaustive enumeration of a member's tokens, for every kind of tokenizer and relation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from byte_oracle import Enumeration
from unit_members import (
    EXACT,
    PAIRS,
    cutters_of,
    enumeration,
    expanded,
    front,
    members,
    models_of,
    probabilities,
    states_of,
)

from hf_eft import EFTForCausalLM
from hf_eft.bytes import ByteLevelModel
from hf_eft.units import TokenLevelModel, common_units

WHOLE = "bytes: base in small"  # all tokens of the base are units (SentencePiece's bytes of letters that are tokens are not)
MEMBERS = [(pair, name) for pair in PAIRS for name in ("base", "tuned") if name == "tuned" or pair != WHOLE]
LENGTH = 3


def texts(pair: str, longest: int = LENGTH) -> list[bytes]:
    """All texts of units up to a length, one byte a unit."""
    units = range(len(PAIRS[pair][2]))
    return [bytes(text) for n in range(1, longest + 1) for text in itertools.product(units, repeat=n)]


@pytest.mark.parametrize("pair", PAIRS)
def test_units_and_what_tokens_are_in_them(pair: str) -> None:
    base, small, wanted = PAIRS[pair]
    units = common_units(cutters_of(pair))
    assert sorted(units.texts) == sorted(wanted)
    for name, which in (("base", base), ("tuned", small)):
        found = {i: [units.texts[k] for k in spelled] for i, spelled in enumerate(units.spelled[name]) if spelled}
        assert found == {i: [wanted[k] for k in spelled] for i, spelled in expanded(pair, which).items()}


@pytest.mark.parametrize(("pair", "name"), MEMBERS)
def test_texts_and_their_ends_are_those_of_the_enumeration(pair: str, name: str) -> None:
    reader = members(pair, **EXACT)[name]
    oracle, space = enumeration(pair, name), front(pair, name)
    expected = torch.tensor(
        [[oracle.joint(space + text), oracle.ended(space + text)] for text in texts(pair)], dtype=torch.float64
    )
    found = probabilities(states_of(reader, texts(pair)))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    for n in range(1, LENGTH):  # a text goes on, or ends
        of_length = [i for i, text in enumerate(texts(pair)) if len(text) == n]
        longer = [i for i, text in enumerate(texts(pair)) if len(text) == n + 1]
        assert float(found[of_length, 0].sum()) == pytest.approx(
            float(found[longer, 0].sum() + found[of_length, 1].sum()), abs=1e-9
        )


@pytest.mark.parametrize("pair", PAIRS)
def test_a_base_is_read_as_it_is_where_all_its_tokens_are_units(pair: str) -> None:
    base = members(pair)["base"]
    assert (base is models_of(pair)["base"]) == (pair == WHOLE)
    assert isinstance(base, TokenLevelModel) == (pair != WHOLE)


@pytest.mark.parametrize("family", ["mistral", "gpt2", "lfm2", "mamba"])
def test_families_whose_states_are_others(family: str) -> None:
    """Windows, positions that are learnt, recurrent states. (mistral's window is 5 tokens: texts that are longer.)"""
    pair = "bytes: shared"
    chosen = [text * 2 if family == "mistral" else text for text in texts(pair)[15:]]
    oracle, reader = enumeration(pair, "tuned", family=family), members(pair, family, **EXACT)["tuned"]
    expected = torch.tensor([[oracle.joint(text), oracle.ended(text)] for text in chosen], dtype=torch.float64)
    close = 1e-6 if family == "mamba" else 1e-9  # its scan is in float32
    torch.testing.assert_close(probabilities(states_of(reader, chosen)), expected, atol=close, rtol=close)


# Texts, whatever they are written in --------------------------------------------------------------------------------------

BYTES = [b"a", b"ab", b"abb", b"ab a", b"bb ab", b"aab", b"babab"]


@pytest.mark.parametrize(("pair", "name"), MEMBERS)
def test_texts_have_the_probabilities_that_the_member_gives_them(pair: str, name: str) -> None:
    """The next byte, summed over all ways to write a text in units, is that of the member read as bytes."""
    units = dict(enumerate(common_units(cutters_of(pair)).texts))
    reader, cutter = members(pair, **EXACT)[name], cutters_of(pair)[name]
    in_bytes = ByteLevelModel(models_of(pair)[name], cutter, covers=None, threshold=0.0, prompt="bytes")
    in_units = Enumeration(lambda text: next_unit(reader, text), units, len(units), ())
    # A byte-level view has the space in front of every text by itself; in units, it is part of the text, if the base has it too.
    space = b" " if in_bytes._reader.prompts._space and not front(pair, name) else b""
    known = b"".join(units.values())
    for text in BYTES:
        if not set(text) <= set(known) or (b" " in text and pair == "unigram and bytes"):
            continue
        [found] = in_bytes.log_prob(text)[:1]
        begun = in_units.joint(space) if space else 1.0
        assert math.exp(found) * begun == pytest.approx(in_units.joint(space + text), abs=1e-9, rel=1e-9)
        [ended] = in_bytes.log_prob(text, end=True)[:1]
        assert math.exp(ended) * begun == pytest.approx(in_units.ended(space + text), abs=1e-9, rel=1e-9)


def next_unit(reader: TokenLevelModel, text: tuple[int, ...]) -> torch.Tensor:
    """The log-probs of units, and of the end, behind others."""
    [state] = states_of(reader, [bytes(text)])
    return torch.full((len(reader._alphabet.ids) + 1,), -torch.inf) if state.next is None else state.next


# Combinations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_a_combination_is_the_combination_of_enumerations(pair: str) -> None:
    """Of all members, at every place of several texts; a base that is not wrapped is one too."""
    model = EFTForCausalLM.from_models(**members(pair, **EXACT))
    oracles = {name: enumeration(pair, name) for name in ("base", "tuned", "reference")}
    cutter, alphabet = cutters_of(pair)["base"], bytes(range(len(PAIRS[pair][2])))
    ids = [*common_units(cutters_of(pair)).ids, cutter.eos_token_id]
    for text in texts(pair)[:: 11 if len(alphabet) > 2 else 3]:
        said = {name: oracle.next(front(pair, name) + text, alphabet).log() for name, oracle in oracles.items()}
        if any(bool(each.isnan().any()) for each in said.values()):
            continue  # a text that one of them cannot write
        log_probs = said["base"] + said["tuned"] - said["reference"]
        expected = log_probs.nan_to_num(-torch.inf).softmax(-1)  # what a member cannot write is not written
        row = torch.tensor([[cutter.bos_token_id, *(ids[k] for k in text)]])
        found = model(input_ids=row).logits[0, -1].detach().double().softmax(-1)
        torch.testing.assert_close(found[ids], expected, atol=1e-5, rtol=1e-4)
        assert float(found.sum() - found[ids].sum()) < 1e-9
