"""What drawn compositions found, each as the smallest case that showed it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from composition_cases import Call, Case, Member, model_of
from composition_checks import check

from hf_eft import Combination, EFTForCausalLM
from hf_eft.members.releases import CACHE, cache_of

TRIO = {"base": Member("llama"), "tuned": Member("gpt2", 1), "reference": Member("gpt2", 2)}


def refused(case: Case) -> str:
    outcome = check(case)
    assert outcome.refused is not None
    return outcome.refused


def test_transformers_own_assisted_decoding_does_not_go_on_from_a_cache() -> None:
    """It reads the whole prompt behind what the cache holds, in plain models as well."""
    case = Case(TRIO, prompts=((56, 6, 20),), calls=(Call(new_tokens=2), Call(drafter="itself", goes_on=True, turn=(53,))))
    assert "transformers reads the whole prompt again behind the 4 tokens that `" in refused(case)
    for drafter in ("tuned", "lookup", "outsider", None):
        calls = (case.calls[0], replace(case.calls[1], drafter=drafter))
        assert check(replace(case, calls=calls)).refused is None


def test_a_cache_is_not_given_to_a_call_that_uses_none() -> None:
    """Plain models read the whole text again behind it, step by step."""
    calls = (Call(new_tokens=2), Call(new_tokens=5, states="none", goes_on=True, turn=(3,)))
    assert "was given with `use_cache=False`" in refused(Case(TRIO, prompts=((56, 6, 20),), calls=calls))


def test_adapters_start_again_from_states_that_were_rolled_back_to_nothing() -> None:
    """The only token of the prompt is read again, for other rows: what is left of the states has rows and no token."""
    members = {"base": Member(), "tuned": Member(adapter=True), "reference": Member()}
    calls = (Call(new_tokens=1), Call("beams", new_tokens=3, beams=2))
    assert check(Case(members, leaf="add-on", prompts=((3,),), calls=calls)).refused is None


@pytest.mark.parametrize("first", [(Call(new_tokens=2),), ()], ids=["reused", "fresh"])
def test_an_adapter_has_a_prompt_of_its_own_in_an_add_on(first: tuple[Call, ...]) -> None:
    """Then it does not share a pass with the model under it."""
    members = {"base": Member(), "tuned": Member(adapter=True), "reference": Member()}
    case = Case(
        members, leaf="add-on", prompts=((3,), (5, 6)), calls=(*first, Call(own={"tuned": ((3, 9), (7,))}, scores=True))
    )
    assert check(case).refused is None


@pytest.mark.parametrize("kinds", [("mamba", "llama"), ("mamba", "mamba"), ("lfm2", "falcon_h1")], ids="-".join)
def test_a_cache_of_other_rows_is_refused_whatever_its_states_are(kinds: tuple[str, str]) -> None:
    """Rows that ended during speculation have left; a recurrent main member has no keys to tell by."""
    models = {"a": model_of(Member(kinds[0])), "b": model_of(Member(kinds[1], 1))}
    model = EFTForCausalLM.from_models(None, models, combination=Combination.mix({"a": 0.5, "b": 0.5}))
    out = model.generate(torch.tensor([[3, 4]]), max_new_tokens=2, return_dict_in_generate=True)
    longer = torch.cat([out.sequences, out.sequences[:, :1]], dim=1).repeat(3, 1)
    with pytest.raises(ValueError, match="states of 1 rows, but 3 are read"):
        model.generate(longer, attention_mask=torch.ones_like(longer), max_new_tokens=2, **{CACHE: cache_of(out)})


@pytest.mark.parametrize("name", ["b", "reference"])
def test_members_that_are_one_object_have_a_prompt_each(name: str) -> None:
    """Whichever of them comes first: the other goes on reading the call's."""
    members = {"base": Member(), "a": Member("gpt2", 1), "b": Member(seed=2), "reference": Member(seed=2)}
    call = Call(new_tokens=3, own={name: ((3, 9), (7,))}, scores=True)
    case = Case(members, ("steer", 1.0, 1.0), prompts=((4,), (5, 6)), calls=(call, Call(scores=True)))
    for calls in (case.calls, case.calls[::-1]):
        assert check(replace(case, calls=calls)).refused is None
    assert check(replace(case, calls=(replace(call, drafter="b", block=2, new_tokens=6),))).refused is None


@pytest.mark.parametrize("kind", ["llama", "lfm2", "mamba"])
def test_a_cache_of_rows_that_ended_at_different_tokens_is_refused(kind: str) -> None:
    """Here the drafter is the whole combination: rows end in one round, of which each keeps another number of tokens."""
    model = EFTForCausalLM.from_models(None, model_of(Member(kind)), combination=Combination({"tuned": 1.0}))
    ids = torch.tensor([[20, 6, 36], [5, 31, 30]])
    plain = model.generate(ids, max_new_tokens=6, eos_token_id=None)[:, 3:].tolist()
    ends = {"same": 6, "other": 5}
    for which, last in ends.items():
        stop = [lambda ids, _, last=last: torch.tensor([ids.shape[1] >= 3 + 6, ids.shape[1] >= 3 + last])]
        out = model.generate(
            ids, max_new_tokens=6, eos_token_id=None, stopping_criteria=stop, assistant_model=model.tuned, num_assistant_tokens=8,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert out.sequences[0, 3:].tolist() == plain[0]
        text = torch.cat([out.sequences, ids[:, :1]], dim=1)
        if which == "other":
            with pytest.raises(ValueError, match="whose rows ended at different tokens"):
                model.generate(text, max_new_tokens=2, **{CACHE: cache_of(out)})
            cache = cache_of(out)
            cache.reset()
            assert (
                model.generate(text, max_new_tokens=2, **{CACHE: cache}).tolist()
                == model.generate(text, max_new_tokens=2).tolist()
            )
        else:
            more = model.generate(text, max_new_tokens=2, **{CACHE: cache_of(out)})
            assert more.tolist() == model.generate(text, max_new_tokens=2).tolist()


# The nucleus holds one token at most steps, and it is forbidden once it was said.
NARROW = Case(
    TRIO, truncation=("drop", 0.01), prompts=((5, 9, 11, 3),), calls=(Call(new_tokens=8, options={"no_repeat_ngram_size": 1}),)
)


@pytest.mark.parametrize("how", ["greedy", "sample", "match", "reject"])
@pytest.mark.parametrize("drafter", [None, "tuned", "lookup"])
def test_a_row_without_any_token_left_is_refused(how: str, drafter: str | None) -> None:
    if how == "reject" and drafter is None:
        how = "sample"
    if how == "sample" and drafter is not None:
        how = "reject"
    options = {"suppress_tokens": list(range(3, 64))}
    call = Call(how, new_tokens=8, options=options, drafter=drafter, block=2)
    case = replace(NARROW, calls=(call,))
    assert "There is no token left for row 0" in refused(case)
    assert check(replace(case, truncation=("keep", 0.01))).refused is None
    if drafter is None and how != "match":
        assert "There is no token left for row 0" in refused(replace(case, leaf="add-on"))


def test_rows_that_have_ended_may_have_no_token_left() -> None:
    """They are filled, whatever their scores are; a batch goes on with the others."""
    case = replace(NARROW, prompts=((5, 9, 11, 3), (7, 8)), calls=(Call("sample", options={"eos_token_id": [2]}),))
    assert check(case).refused is None


@pytest.mark.parametrize("leaf", ["wrapper", "add-on"])
def test_a_search_drops_beams_without_any_token_left(leaf: str) -> None:
    call = Call("beams", new_tokens=4, options={"bad_words_ids": [[i] for i in range(3, 60)]}, beams=2)
    case = replace(NARROW, leaf=leaf, truncation=("drop", 0.9), calls=(call,))
    assert check(case).refused is None


@pytest.mark.parametrize("how", ["beams", "beam sample"])
def test_a_search_without_any_token_left_is_refused(how: str) -> None:
    """torch's own error came of it where beams were drawn, and padding for an answer where they were not."""
    call = Call(how, new_tokens=3, options={"suppress_tokens": list(range(3, 64))}, beams=2)
    case = replace(NARROW, prompts=((5, 9), (7, 8)), calls=(call,))
    assert "There is no token left for row 0" in refused(case)
    assert check(replace(case, truncation=("keep", 0.01))).refused is None


def test_a_member_with_a_prompt_of_its_own_does_not_count_for_one_that_counts_none() -> None:
    """The next call took the cache of the base for one that had read a token more."""
    own = {"tuned": ((3, 3),)}
    for drafts in ({"drafter": "tuned", "block": 1}, {}):
        calls = (Call(new_tokens=3, own=own, **drafts), Call(new_tokens=2, own=own, goes_on=True, turn=(3,)))
        members = {"base": Member("mamba"), "tuned": Member("llama", 1), "reference": Member("mamba", 2)}
        assert check(Case(members, prompts=((3,),), calls=calls)).refused is None
