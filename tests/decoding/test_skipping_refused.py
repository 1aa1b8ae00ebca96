"""Where members cannot be left out exactly, that is refused by name; and the parts of skipping, against loops."""

from __future__ import annotations

import math
from typing import Any

import oracle
import paged
import pytest
import thinking
import torch
from byte_members import ids_of
from byte_members import members as byte_members
from seeing import seeing, shown
from skipped import OPTIONS, RECIPES, model
from thinking import prompts
from transformers import DynamicCache, QuantizedCache, StaticCache

from hf_eft import Combination, EFTForCausalLM, Skipping, Truncation
from hf_eft.decoding.skipping import call
from hf_eft.decoding.skipping.call import refuse_cache
from hf_eft.decoding.skipping.leads import lead, moved, one_left
from hf_eft.members.releases import CACHE, cache_of

BOUND = Skipping(bound=1.0)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"cache_implementation": "static"}, "skipped on static caches, whose steps are of one shape. Use a dynamic cache"),
        ({"assistant_model": "tuned"}, "skipped with drafts"),
        ({"prompt_lookup_num_tokens": 2}, "skipped with drafts"),
        ({"do_sample": True, "coupling": "match", "seed": 1}, "skipped with a `seed`"),
        ({"synced_gpus": True}, "skipped with `synced_gpus`"),
        ({"skipping": BOUND, "do_sample": True}, r"`Skipping\(bound=...\)`\) beside sampling or beams"),
        ({"skipping": Skipping(recent=2), "num_beams": 2}, r"`Skipping\(recent=...\)`\) beside sampling or beams"),
        ({"skipping": BOUND, "repetition_penalty": 2.0}, r"beside processors, .*\(RepetitionPenaltyLogitsProcessor\)"),
        ({"skipping": BOUND, "return_dict_in_generate": True, "output_scores": True}, "with scores or logits in the output"),
        ({"custom_generate": lambda model, input_ids, **_: model(input_ids)}, "skipped by this way of decoding"),
    ],
)
def test_ways_of_decoding(options: dict[str, Any], error: str) -> None:
    combined = model(RECIPES["schedule"])
    if options.get("assistant_model"):
        options = {**options, "assistant_model": combined.tuned}
    with pytest.raises(ValueError, match=error):
        combined.generate(**prompts(1), **OPTIONS, **{"skipping": True, **options})


@pytest.mark.parametrize(
    "recipe, error",
    [
        (Combination.emulate(truncation=Truncation("keep", 0.9)), "with the truncation 'keep', which goes by a tuned member"),
        (Combination.emulate(truncation=Truncation("drop", 0.9)), "with the truncation 'drop', which goes by a tuned member"),
        (Combination.interpolate(0.5), "without a base that is the first member"),
    ],
    ids=str,
)
def test_recipes_whose_choice_the_base_does_not_lead(recipe: Combination, error: str) -> None:
    members = {} if "base" in recipe.coefficients else {"base": None}
    with pytest.raises(ValueError, match=error):
        model(recipe, **members).generate(**prompts(1), **OPTIONS, skipping=BOUND)


def test_kinds_of_members_and_caches() -> None:
    assert refuse_cache(None) is None and refuse_cache(DynamicCache()) is None
    for cache, error in (
        (StaticCache(config=thinking.member("llama", 0).config, max_cache_len=4), "static caches"),
        (object.__new__(QuantizedCache), "quantized caches"),
    ):
        with pytest.raises(ValueError, match=error):
            refuse_cache(cache)
    combined = model(RECIPES["schedule"])
    config = paged.greedy(2, eos_token_id=None)
    with pytest.raises(NotImplementedError, match="`skipping` leaves members out of steps that all requests share"):
        combined.generate(torch.tensor([[3, 4]]), config, cache_implementation="paged", skipping=True)
    assert combined.generate(**prompts(1), **OPTIONS, skipping=True, **{CACHE: DynamicCache()}).shape == (1, 29)


@pytest.mark.parametrize(
    "given, error, kind",
    [
        ({"bound": 1.0, "recent": 2}, "Give `bound`, which you know, or `recent`", ValueError),
        ({"bound": -1.0}, "`bound` of `Skipping` must be a number from 0 on, got -1.0", ValueError),
        ({"bound": math.inf}, "got inf", ValueError),
        ({"recent": 2, "factor": -0.5}, "`factor` of `Skipping` must be a number from 0 on", ValueError),
        ({"recent": 0}, "`recent` of `Skipping` must be a number of steps, 1 or more, got 0", ValueError),
        ({"recent": True}, "got True", ValueError),
        ({"factor": 2.0}, "`factor` of `Skipping` multiplies what `recent` estimates", ValueError),
    ],
    ids=str,
)
def test_options(given: dict[str, Any], error: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=error):
        Skipping(**given)


def test_what_a_call_may_ask() -> None:
    combined = model(RECIPES["schedule"])
    with pytest.raises(TypeError, match=r"`skipping` must be `True`, `False` or a `Skipping\(...\)`, got str"):
        combined.generate(**prompts(1), **OPTIONS, skipping="truncation")
    plain = combined.generate(**prompts(1), **OPTIONS, skipping=False)
    assert plain.tolist() == combined.generate(**prompts(1), **OPTIONS).tolist() and combined.skipping is None


def test_one_token_left_as_counted_by_the_oracle() -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = (3 * torch.randn(6, 30, 8, generator=generator)).log_softmax(-1)
    for rule, p in (("base", 0.6), ("base", 0.9), ("plausible", 0.3), ("plausible", 0.9)):
        inside = oracle.within if rule == "base" else oracle.plausible
        expected = [[int(inside(at, p, at).isfinite().sum()) == 1 for at in row] for row in log_probs]
        got = one_left(log_probs, Truncation(rule, p))  # type: ignore[arg-type]
        assert got.tolist() == expected and 0 < int(got.sum()) < got.numel()
    nearly = torch.tensor([[[0.5999, 0.4001], [0.6001, 0.3999]]]).log()
    assert one_left(nearly, Truncation("base", 0.6)).tolist() == [[False, True]]


def test_leads_and_moves_as_counted_one_by_one() -> None:
    generator = torch.Generator().manual_seed(2)
    term, delta = torch.randn(3, 4, 6, generator=generator), torch.randn(3, 4, 6, generator=generator)
    combined = term + delta
    combined[0, 0, (int(term[0, 0].argmax()) + 1) % 6] = -math.inf
    for row in range(3):
        for place in range(4):
            values, both = term[row, place].tolist(), combined[row, place].tolist()
            choice = values.index(max(values))
            others = [token for token in range(6) if token != choice]
            assert float(lead(term)[row, place]) == pytest.approx(values[choice] - max(values[token] for token in others))
            strongest = max(others, key=lambda token: both[token])
            ahead = (both[strongest] - both[choice]) - (values[strongest] - values[choice])
            assert float(moved(combined, term)[row, place]) == pytest.approx(ahead, abs=1e-5)
    assert float(moved(torch.tensor([[0.0, -math.inf]])[None], torch.tensor([[1.0, 0.5]])[None])) <= 0


def test_what_is_seen_and_what_is_read_byte_by_byte() -> None:
    given = shown("gemma3", counts=(1,), words=(3,))
    combined = EFTForCausalLM.from_models(*(seeing("gemma3", seed) for seed in (1, 2, 3)))
    with pytest.raises(ValueError, match=r"skipped that are shown pictures\. Leave one of them out"):
        combined.generate(**given.inputs, max_new_tokens=3, skipping=True)
    told = combined.generate(**given.inputs, max_new_tokens=3, return_dict_in_generate=True)
    with pytest.raises(ValueError, match=r"skipped behind pictures\. Leave it out"):
        combined.generate(told.sequences, max_new_tokens=3, skipping=True, **{CACHE: cache_of(told)})
    with pytest.raises(
        ValueError, match=r"skipped with members of other tokenizers \('base'\), which read a block as a prompt"
    ):
        EFTForCausalLM.from_models(**byte_members()).generate(**ids_of(b"ab"), max_new_tokens=2, skipping=True)


@pytest.mark.parametrize(
    "asked, error",
    [
        ("is_sharded", r"skipped with members of several processes \('tuned'\)"),
        (
            "looks_beside",
            r"skipped with members quantised by LLM.int8 with a threshold \('tuned'\), .* `llm_int8_threshold=0.0`",
        ),
    ],
)
def test_members_that_do_not_read_alone(asked: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, asked, lambda member: member is thinking.member("qwen3", 1))
    with pytest.raises(ValueError, match=error):
        model(RECIPES["schedule"]).generate(**prompts(1), **OPTIONS, skipping=True)
