"""Members in units, through `generate`: it works as for any model, and what is written is that of the enumeration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byte_members import WAYS
from unit_members import (
    PAIRS,
    TEXTS,
    cutters_of,
    enumerated,
    generated,
    ids_of,
    members,
    models_of,
    tokenizer,
    without_padding,
)

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.units import read_in_units
from hf_eft.units.members import spoken

ALL: dict[str, Any] = {"covers": None, "threshold": 0.0}
WHOLE, SOME = "bytes: base in small", "pieces: shared"  # a base as it is, and one that is read in units
RUN = ("bytes: shared", WHOLE, SOME, "unigram: small in base", "spaced and pieces", "pieces and spaced")


def table(*ways: str) -> Any:
    """Every way with the base in units; with a base as it is fewer, and the others every night."""
    often = ("greedy", "beams", "match")
    cases = [pytest.param(SOME, way, id=f"{way}, {SOME}") for way in ways]
    cases += [pytest.param(WHOLE, way, id=f"{way}, {WHOLE}", marks=() if way in often else pytest.mark.nightly) for way in ways]
    return pytest.mark.parametrize(("pair", "way"), cases)


def combined(pair: str, recipe: Combination | None = None, **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(**members(pair, **options), combination=recipe)


def plain(p: dict[str, torch.Tensor]) -> torch.Tensor:
    return p["base"].log() + p["tuned"].log() - p["reference"].log()


@pytest.mark.parametrize("pair", RUN)
def test_greedy_is_that_of_the_enumeration(pair: str) -> None:
    rows = generated(combined(pair, **ALL), pair, max_new_tokens=4)
    for i, (text, row) in enumerate(zip(TEXTS, rows, strict=True)):
        begun = ids_of(pair, text)["input_ids"][0].tolist()
        assert without_padding(pair, row) == [*begun, *enumerated(pair).greedy(i, 4, plain)], text


@table(*(way for way in WAYS if way != "match"))
def test_base_and_reference_alike_give_the_tuned_models_own_texts(pair: str, way: str) -> None:
    given = members(pair)
    same = EFTForCausalLM.from_models(given["reference"], tuned=given["tuned"], reference=given["reference"])
    assert generated(same, pair, **WAYS[way]) == generated(members(pair)["tuned"], pair, **WAYS[way])


@table("greedy", "sample", "beams", "penalty")
def test_no_delta_gives_the_bases_own_texts(pair: str, way: str) -> None:
    cutter = tokenizer(PAIRS[pair][0])
    # A base that is not wrapped could write these; combined with members in units it does not.
    options = {**WAYS[way], "suppress_tokens": [cutter.pad_token_id, cutter.bos_token_id]}
    given = members(pair)
    own = generated(given["base"], pair, **options)
    none = EFTForCausalLM.from_models(given["base"], tuned=given["tuned"], reference=given["reference"], alpha=0.0)
    alike = EFTForCausalLM.from_models(given["base"], tuned=given["reference"], reference=given["reference"])
    assert generated(none, pair, **options) == own
    assert generated(alike, pair, **options) == own


@table(*WAYS)
def test_rows_and_reuse_change_nothing(pair: str, way: str) -> None:
    """Batched and padded equals one by one; an object that was used equals a fresh one."""
    model = combined(pair)
    first = generated(model, pair, **WAYS[way])
    assert generated(model, pair, **WAYS[way]) == first
    assert generated(combined(pair), pair, **WAYS[way]) == first
    if WAYS[way].get("do_sample") and way != "match":
        return  # other numbers are drawn
    per_row = WAYS[way].get("num_return_sequences", 1)
    for i, text in enumerate(TEXTS):
        options = {**WAYS[way], "seed": [i + 5]} if way == "match" else WAYS[way]
        alone = model.generate(**ids_of(pair, text), max_new_tokens=6, **options).tolist()
        rows = first[i * per_row : (i + 1) * per_row]
        assert [without_padding(pair, row) for row in alone] == [without_padding(pair, row) for row in rows]


DRAFTS: dict[str, Any] = {
    "tuned, 1": lambda model: {"assistant_model": model.tuned, "num_assistant_tokens": 1},
    "tuned, 3": lambda model: {"assistant_model": model.tuned, "num_assistant_tokens": 3},
    "reference": lambda model: {"assistant_model": model.reference, "num_assistant_tokens": 2},
    "base": lambda model: {"assistant_model": model.base, "num_assistant_tokens": 2},
    "small combination": lambda model: {"assistant_model": model.small_combination, "num_assistant_tokens": 3},
    "prompt": lambda model: {"prompt_lookup_num_tokens": 3},
}


@table("greedy", "match")
def test_speculation_gives_the_texts_of_plain_decoding(pair: str, way: str) -> None:
    model = combined(pair)
    plain = generated(model, pair, max_new_tokens=9, **WAYS[way])
    for drafts in DRAFTS.values():
        assert generated(model, pair, max_new_tokens=9, **WAYS[way], **drafts(model)) == plain
        assert model.speculation is not None


@table("greedy", "sample", "beams", "returned")
def test_as_an_add_on(pair: str, way: str) -> None:
    """Inside the base's view, or inside the base where all its tokens are units."""
    models = models_of(pair)
    small = {name: models[name] for name in ("tuned", "reference")}
    add_on = EFTLogitsProcessor(**small, tokenizers=cutters_of(pair), vocabulary="tokens")
    base = members(pair)["base"]
    assert generated(base, pair, logits_processor=[add_on], **WAYS[way]) == generated(combined(pair), pair, **WAYS[way])


def test_the_base_alone_is_read_in_the_units_of_all() -> None:
    """Inside of it, an add-on finds units; and so it is whichever tokenizer is named first."""
    models, cutters = models_of(SOME), cutters_of(SOME)
    backwards = dict(reversed(cutters.items()))
    add_on = EFTLogitsProcessor(models["tuned"], models["reference"], tokenizers=backwards, vocabulary="tokens")
    base = read_in_units({"base": models["base"]}, backwards)["base"]
    assert generated(base, SOME, logits_processor=[add_on]) == generated(combined(SOME), SOME)
    own, others = spoken("tokens", cutters)["tuned"], spoken("tokens", backwards)["tuned"]
    assert own("abbb")["input_ids"] == others("abbb")["input_ids"]


def test_an_add_on_beside_a_base_that_writes_longer_tokens_is_refused() -> None:
    models = models_of(SOME)
    add_on = EFTLogitsProcessor(models["tuned"], models["reference"], tokenizers=cutters_of(SOME), vocabulary="tokens")
    with pytest.raises(ValueError, match=r"gives scores to longer ones.*read_in_units"):
        generated(models["base"], SOME, logits_processor=[add_on])


def test_through_both_entries() -> None:
    """`vocabulary="tokens"` makes the views, one for a model that serves twice, and says so."""
    models, cutters = models_of(SOME), cutters_of(SOME)
    model = EFTForCausalLM.from_models(
        models["base"], tuned=models["tuned"], reference=models["reference"], tokenizers=cutters, vocabulary="tokens"
    )
    assert model.vocabulary == "tokens"
    assert generated(model, SOME) == generated(combined(SOME), SOME)
    twice = EFTForCausalLM.from_models(
        models["base"], tuned=models["tuned"], reference=models["tuned"], tokenizers=cutters, vocabulary="tokens"
    )
    assert twice.tuned is twice.reference and twice.tuned.model is models["tuned"]
    assert models["tuned"].generation_config.eos_token_id == cutters["tuned"].eos_token_id  # what was given is as it was
    with pytest.raises(ValueError, match="but 'tuned' has none"):
        EFTForCausalLM.from_models(
            models["base"], tuned=models["tuned"], tokenizers={"base": cutters["base"]}, vocabulary="tokens"
        )


@pytest.mark.parametrize("vocabulary", ["tokens", "bytes"])
def test_a_view_of_units_is_not_read_as_something_else(vocabulary: str) -> None:
    """In units it would be a view of a view; in bytes its units would be taken for them."""
    models, cutters = models_of(SOME), cutters_of(SOME)
    given = {**models, "tuned": members(SOME)["tuned"]}
    for make in (
        lambda: EFTForCausalLM.from_models(**given, tokenizers=cutters, vocabulary=vocabulary),
        lambda: EFTLogitsProcessor(given["tuned"], given["reference"], tokenizers=cutters, vocabulary=vocabulary),
    ):
        with pytest.raises(ValueError, match=r"member 'tuned' is a TokenLevelModel.*give `model\.model`"):
            make()
    with pytest.raises(ValueError, match="TokenLevelModel"):
        read_in_units(given, cutters)


@pytest.mark.parametrize("pair", [WHOLE, SOME])
def test_coefficients_by_row_and_other_recipes(pair: str) -> None:
    model = combined(pair)
    rows = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, -1.0]])
    swept = generated(model, pair, coefficients=rows)
    for i, recipe in enumerate(({"base": 1.0, "tuned": 0.5}, {"tuned": 1.0}, {"base": 1.0, "tuned": 1.0, "reference": -1.0})):
        model.combination = Combination(recipe)
        assert without_padding(pair, generated(model, pair)[i]) == without_padding(pair, swept[i])


@pytest.mark.parametrize("pair", [WHOLE, SOME])
def test_members_with_prompts_of_their_own(pair: str) -> None:
    model, own = combined(pair), ids_of(pair, "ba", "aab", "b")
    ids = generated(model, pair, member_inputs={"tuned": own, "reference": own})
    assert ids != generated(model, pair)
    for row, text in enumerate(TEXTS):
        mine = {key: value[row : row + 1] for key, value in own.items()}
        alone = model.generate(**ids_of(pair, text), member_inputs={"tuned": mine, "reference": mine}, max_new_tokens=6)
        assert without_padding(pair, alone[0].tolist()) == without_padding(pair, ids[row])
