"""Members that see, under every strategy, against three stateless forwards with the picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seeing import FAMILIES, PLACES, emulated, seeing, shown

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

NEW = 5
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "sample": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "no_cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "member_drafts": {"assistant_model": "tuned", "num_assistant_tokens": 3},
    "small_drafts": {"assistant_model": "small", "num_assistant_tokens": 3},
    "other_drafts": {"assistant_model": "other", "num_assistant_tokens": 3},
    "drafts_static": {"assistant_model": "tuned", "num_assistant_tokens": 3, "cache_implementation": "static"},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "match": {"do_sample": True, "top_k": 0, "coupling": "match", "seed": 3},
}
#: Of these every family is held to; all to all in the nightly run.
COMMON = ("greedy", "beams", "member_drafts")
ADD_ON = {name: STRATEGIES[name] for name in ("greedy", "beams", "sample", "no_cache", "static")}


def members(family: str) -> list[Any]:
    return [seeing(family, seed) for seed in (1, 2, 3)]


def hold(out: Any, models: list[Any], given: Any, options: dict[str, Any], renormalised: bool = False) -> None:
    """What was generated, and every value that was returned, against the oracle."""
    length, each = given.input_ids.shape[1], options.get("num_return_sequences", 1)
    for i, sequence in enumerate(out.sequences):
        text = sequence[length:]
        expected = emulated(models, given, i // each, text[:-1])
        if renormalised:  # what an add-on gives back is, behind the processors of `generate`
            expected[:, PLACES] = -torch.inf
            expected = expected.log_softmax(-1)
        if "num_beams" in options:
            score = expected[range(NEW), text].sum() / NEW
            torch.testing.assert_close(out.sequences_scores[i].double(), score, atol=2e-4, rtol=0)
            continue
        got = torch.stack([step[i].double().log_softmax(-1) for step in (out.scores if renormalised else out.logits)])
        torch.testing.assert_close(got, expected, atol=5e-4, rtol=0)
        if not options.get("do_sample"):
            expected[:, PLACES] = -torch.inf
            assert text.tolist() == expected.argmax(-1).tolist()


def cases(strategies: Any) -> list[Any]:
    """Families and strategies; those that the nightly run holds are marked."""
    chosen = [(family, name) for family in FAMILIES for name in strategies]
    return [
        pytest.param(family, name, id=f"{family}-{name}", marks=[] if _at_once(family, name) else [pytest.mark.nightly])
        for family, name in chosen
    ]


def _at_once(family: str, name: str) -> bool:
    return name in COMMON or family in ("qwen2_vl", "gemma3")


@pytest.mark.parametrize(("family", "name"), cases(STRATEGIES))
def test_members_see_what_the_call_shows(family: str, name: str) -> None:
    """A batch of rows with one picture, two of other sizes, and none, padded on the left."""
    models, given, options = members(family), shown(family), dict(STRATEGIES[name])
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    drafts = {"tuned": models[1], "small": model.small_combination, "other": seeing(family, 4)}
    if "assistant_model" in options:
        options["assistant_model"] = drafts[options["assistant_model"]]
    out = model.generate(
        **given.inputs, **{"do_sample": False, **options}, max_new_tokens=NEW, suppress_tokens=PLACES, return_dict_in_generate=True,
        output_logits=True, output_scores=True,
    )  # fmt: skip
    hold(out, models, given, options)


@pytest.mark.parametrize(("family", "name"), cases(ADD_ON))
def test_an_add_on_sees_what_the_call_shows(family: str, name: str) -> None:
    base, tuned, reference = models = members(family)
    given, options = shown(family), ADD_ON[name]
    out = base.generate(
        **given.inputs, **{"do_sample": False, **options}, max_new_tokens=NEW, suppress_tokens=PLACES, return_dict_in_generate=True,
        output_scores=True, logits_processor=[EFTLogitsProcessor(tuned, reference, pad_token_id=0)],
    )  # fmt: skip
    hold(out, models, given, options, renormalised=True)


@pytest.mark.parametrize("options", [{"assistant_model": "tuned"}, {"prompt_lookup_num_tokens": 3}], ids=["drafts", "lookup"])
def test_an_add_on_sees_under_assisted_decoding(options: dict[str, Any]) -> None:
    base, tuned, reference = models = members("qwen2_vl")
    given = shown("qwen2_vl", (2,), (3,))
    options = {name: tuned if value == "tuned" else value for name, value in options.items()}
    out = base.generate(
        **given.inputs, **options, max_new_tokens=NEW, suppress_tokens=PLACES, return_dict_in_generate=True, output_scores=True,
        logits_processor=[EFTLogitsProcessor(tuned, reference)],
    )  # fmt: skip
    hold(out, models, given, options, renormalised=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_gives_the_logits_of_all_positions(family: str) -> None:
    models, given = members(family), shown(family)
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    got = model(**given.inputs).logits.double().log_softmax(-1)
    for i in range(len(given.counts)):
        ids, _ = given.row(i)
        prompt, pictures = given.row(i)
        terms = [model.log_softmax(-1) for model in _along(models, family, prompt, pictures)]
        expected = (terms[0] + terms[1] - terms[2]).log_softmax(-1)
        torch.testing.assert_close(got[i, -len(ids) :], expected, atol=5e-4, rtol=0)


def _along(models: list[Any], family: str, prompt: torch.Tensor, pictures: Any) -> list[torch.Tensor]:
    from seeing import along

    return [along(model, family, prompt, pictures) for model in models]
