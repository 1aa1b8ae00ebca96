"""What members see: their own pictures and prompts, and nothing of it left on a model, in a cache or with an add-on for another call."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from families import PAD, VOCAB, lora, shared
from seeing import KINDS, PLACES, Shown, emulated, kinds, log_probs, make, seeing, shown
from transformers import AutoModelForCausalLM

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

NEW = 4
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": PLACES, "eos_token_id": None}
OWN: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "static": {"cache_implementation": "static"},
    "no_cache": {"use_cache": False},
    "drafts": {"assistant_model": "tuned", "num_assistant_tokens": 2},
}


def wrapper(family: str) -> tuple[EFTForCausalLM, list[Any]]:
    models = [seeing(family, seed) for seed in (1, 2, 3)]
    return EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2]), models


def best(expected: torch.Tensor) -> list[int]:
    expected[:, PLACES] = -torch.inf
    return expected.argmax(-1).tolist()


def held(out: torch.Tensor, models: list[Any], given: Shown) -> None:
    """Greedy tokens against the oracle."""
    for i, sequence in enumerate(out):
        text = sequence[given.input_ids.shape[1] :]
        assert text.tolist() == best(emulated(models, given, i, text[:-1]))


def others(given: Shown) -> Shown:
    """The same prompts, with other pictures."""
    pictures = {n: -v if v.is_floating_point() else v for n, v in given.pictures.items()}
    return Shown(given.family, given.counts, given.input_ids, given.attention_mask, pictures)


# One call, one model, one object after the other and at once --------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_nothing_is_left_on_the_models(family: str) -> None:
    model, models = wrapper(family)
    before = [copy.copy(getattr(each.model, "rope_deltas", None)) for each in models]
    given = shown(family)
    model.generate(**given.inputs, **GREEDY)
    model(**given.inputs)
    models[0].generate(**shown(family, seed=1).inputs, **GREEDY)
    after = [getattr(each.model, "rope_deltas", None) for each in models]
    assert [str(x) for x in before[1:]] == [str(x) for x in after[1:]]  # (the base's own call leaves what it does)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"assistant_model": 2, "num_assistant_tokens": 2}])
def test_one_model_as_two_members_gives_the_tuned_one(options: dict[str, Any]) -> None:
    base, tuned = seeing("qwen3_vl", 1), seeing("qwen3_vl", 2)
    model, given = EFTForCausalLM.from_models(base, tuned=tuned, reference=base), shown("qwen3_vl")
    chosen = {key: tuned if key == "assistant_model" else value for key, value in options.items()}
    plain = {key: value for key, value in options.items() if "assistant" not in key}
    got, expected = model.generate(**given.inputs, **GREEDY, **chosen), tuned.generate(**given.inputs, **GREEDY, **plain)
    assert torch.equal(got, expected)


def test_threads_with_other_pictures_do_not_disturb_each_other() -> None:
    model, models = wrapper("qwen2_vl")
    add_on = EFTLogitsProcessor(models[1], models[2], pad_token_id=PAD)
    calls = [shown("qwen2_vl", seed=seed) for seed in range(2)]
    calls += [others(each) for each in calls]

    def both(given: Shown) -> tuple[torch.Tensor, torch.Tensor]:
        wrapped = model.generate(**given.inputs, **GREEDY)
        return wrapped, models[0].generate(**given.inputs, **GREEDY, logits_processor=[add_on])

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(both, calls))
    for given, outs in zip(calls, results, strict=True):
        for out in outs:
            held(out, models, given)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}])
def test_rows_of_the_same_ids_see_their_own_pictures(options: dict[str, Any]) -> None:
    """And so do calls of the same ids: what an add-on has read is found by ids, which say nothing of a picture."""
    _, models = wrapper("gemma3")
    add_on, one = EFTLogitsProcessor(models[1], models[2], pad_token_id=PAD), shown("gemma3", (1,), (3,))
    ids = one.input_ids.repeat(2, 1)
    pictures = {name: torch.cat([values, -values]) for name, values in one.pictures.items()}
    given = Shown("gemma3", (1, 1), ids, torch.ones_like(ids), pictures)
    turned = Shown("gemma3", (1, 1), ids, torch.ones_like(ids), {n: v.flip(0) for n, v in pictures.items()})
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    found = []
    for each in (given, turned, given):
        out = models[0].generate(**each.inputs, **{**GREEDY, **options}, logits_processor=[add_on])
        assert torch.equal(out, model.generate(**each.inputs, **{**GREEDY, **options}, renormalize_logits=True))
        if "num_beams" not in options:
            held(out[:: options.get("num_return_sequences", 1)], models, each)
        found.append(out)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    texts = {"input_ids": torch.full((2, 3), 30)}
    fresh = EFTLogitsProcessor(models[1], models[2], pad_token_id=PAD)
    outs = [models[0].generate(**texts, **GREEDY, logits_processor=[each]) for each in (add_on, fresh)]
    assert torch.equal(*outs)


def test_beams_of_the_same_ids_and_text_see_their_own_pictures() -> None:
    """Pictures that are nearly the same have the same text, so that only the picture tells the rows of one from those of the other."""
    _, models = wrapper("gemma3")
    one = shown("gemma3", (1,), (3,))
    ids, pixels = one.input_ids.repeat(2, 1), one.pictures["pixel_values"]
    given = Shown("gemma3", (1, 1), ids, torch.ones_like(ids), {"pixel_values": torch.cat([pixels, 1.02 * pixels])})
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    options = {**GREEDY, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True, "suppress_tokens": None}
    got = models[0].generate(**given.inputs, **options, logits_processor=[EFTLogitsProcessor(models[1], models[2])])
    expected = model.generate(**given.inputs, **options)
    assert torch.equal(expected.sequences[0], expected.sequences[1])
    assert abs(float(expected.sequences_scores.diff())) > 1e-4
    torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, atol=2e-5, rtol=0)


# Pictures of their own ----------------------------------------------------------------------------------------------------


def mixed() -> tuple[list[Any], dict[str, Shown], list[tuple[Any, ...]]]:
    """A base and small members of other families: own sizes, tiles, placeholders and positions; by row, the oracle's terms."""
    families = {"base": "qwen2_vl", "tuned": "gemma3", "reference": "llava_next"}
    models = [seeing(family, 5) for family in families.values()]
    given = {name: shown(family, (1, 2, 0), (2 + i, 3, 7), seed=i) for i, (name, family) in enumerate(families.items())}
    rows = [
        tuple((c, model, each.family, *each.row(i)) for c, model, each in zip((1, 1, -1), models, given.values(), strict=True))
        for i in range(3)
    ]
    return models, given, rows


@pytest.mark.parametrize("name", OWN)
def test_every_member_has_its_own_pictures_and_prompt(name: str) -> None:
    models, given, rows = mixed()
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    options = {key: models[1] if key == "assistant_model" else value for key, value in OWN[name].items()}
    own = {each: given[each].inputs for each in ("tuned", "reference")}
    out = model.generate(
        **given["base"].inputs, member_inputs=own, **GREEDY, **options, return_dict_in_generate=True, output_logits=True
    )
    for i, sequence in enumerate(out.sequences):
        text = sequence[-NEW:]
        expected = log_probs(rows[i], text[:-1])
        if "num_beams" in options:
            got = expected[range(NEW), text].sum() / NEW
            again = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2]).generate(
                **given["base"].inputs, member_inputs=own, **GREEDY, **options, return_dict_in_generate=True, output_scores=True
            )
            torch.testing.assert_close(again.sequences_scores[i].double(), got, atol=2e-4, rtol=0)
            continue
        got = torch.stack([step[i].double().log_softmax(-1) for step in out.logits])
        torch.testing.assert_close(got, expected, atol=5e-4, rtol=0)
        assert text.tolist() == best(expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_small_models_of_an_add_on_have_their_own_pictures(options: dict[str, Any]) -> None:
    models, given, _ = mixed()
    own = {each: given[each].inputs for each in ("tuned", "reference")}
    add_on = EFTLogitsProcessor(
        models[1], models[2], attention_mask=given["base"].attention_mask, member_inputs=own, pad_token_id=PAD
    )
    got = models[0].generate(**given["base"].inputs, **GREEDY, **options, logits_processor=[add_on])
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    expected = model.generate(**given["base"].inputs, member_inputs=own, **GREEDY, **options, renormalize_logits=True)
    assert torch.equal(got, expected)


def test_own_pictures_in_forward() -> None:
    models, given, rows = mixed()
    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    own = {each: given[each].inputs for each in ("tuned", "reference")}
    got = model(**given["base"].inputs, member_inputs=own).logits[:, -1].double().log_softmax(-1)
    expected = torch.stack([log_probs(row, torch.tensor([], dtype=torch.long))[-1] for row in rows])
    torch.testing.assert_close(got, expected, atol=5e-4, rtol=0)


def test_a_member_of_text_is_told_a_text_in_its_place_or_refused() -> None:
    base, tuned, reference = seeing("qwen2_vl", 1), shared("llama", 2), shared("llama", 3)
    given = shown("qwen2_vl")
    model, add_on = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference), EFTLogitsProcessor(tuned, reference)
    calls = [
        lambda: model.generate(**given.inputs, **GREEDY),
        lambda: model(**given.inputs),
        lambda: base.generate(**given.inputs, **GREEDY, logits_processor=[add_on]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"'tuned' \(LlamaForCausalLM\) does not take `pixel_values`.*member_inputs"):
            call()
    text = {"input_ids": torch.randint(20, VOCAB, (3, 4), generator=torch.Generator().manual_seed(1))}
    out = model.generate(**given.inputs, **GREEDY, member_inputs={"tuned": text, "reference": text})
    for i, sequence in enumerate(out):
        terms = [(1, base, "qwen2_vl", *given.row(i))]
        terms += [(c, each, None, text["input_ids"][i], {}) for c, each in ((1, tuned), (-1, reference))]
        assert sequence[-NEW:].tolist() == best(log_probs(terms, sequence[-NEW:-1]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_an_adapter_sees_with_the_model_under_it() -> None:
    base, reference = seeing("qwen2_vl", 1), make("qwen2_vl", 3)
    tuned = lora(reference)
    model, given = EFTForCausalLM.from_models(base, tuned=tuned), shown("qwen2_vl")
    out = model.generate(**given.inputs, **GREEDY)
    drafted = model.generate(**given.inputs, **GREEDY, assistant_model=model.tuned, num_assistant_tokens=2)
    held(out, [base, model.tuned, model.members["reference"]], given)
    assert torch.equal(drafted, out)


# What goes on from a cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "idefics3"])
def test_a_conversation_goes_on_from_the_cache_that_holds_its_pictures(family: str) -> None:
    model, models = wrapper(family)
    given = shown(family)
    first = model.generate(**given.inputs, **GREEDY, return_dict_in_generate=True)
    cache = copy.deepcopy(first.cache) if "cache" in first else copy.deepcopy(first.past_key_values)
    more = torch.randint(20, VOCAB, (3, 3), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([first.sequences, more], dim=1)
    mask = torch.cat([given.attention_mask, torch.ones(3, NEW + 3, dtype=torch.long)], dim=1)
    mask[0, -3] = 0  # a row whose turn was shorter
    out = model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)
    for i, sequence in enumerate(out):
        if i == 0:
            continue  # what is masked behind a prompt has a column of its own, which the oracle's text has not
        whole = sequence[given.input_ids.shape[1] :]
        assert whole[-NEW:].tolist() == best(emulated(models, given, i, whole[:-1])[-NEW:])
    for_row = model.generate(ids[:1], attention_mask=mask[:1], **_first_row(given), **GREEDY)
    assert torch.equal(out[0], for_row[0])


def _first_row(given: Shown) -> dict[str, Any]:
    _, pictures = given.row(0)
    longer = torch.zeros(1, given.input_ids.shape[1] + NEW + 3, dtype=torch.long)
    told = kinds(given.family, given.input_ids[:1])
    return {**pictures, **{name: torch.cat([v, longer[:, v.shape[1] :]], dim=1) for name, v in told.items()}}


def test_a_step_of_forward_goes_on_where_the_picture_ended() -> None:
    model, models = wrapper("qwen2_vl")
    given = shown("qwen2_vl", (1, 2), (4, 4))
    first = model(**given.inputs, use_cache=True)
    token = torch.tensor([[30], [31]])
    mask = torch.cat([given.attention_mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    cache = first["cache"] if "cache" in first else first["past_key_values"]
    got = model(token, attention_mask=mask, past_key_values=cache).logits[:, -1].double().log_softmax(-1)
    expected = torch.stack([emulated(models, given, i, token[i])[-1] for i in range(2)])
    torch.testing.assert_close(got, expected, atol=5e-4, rtol=0)


def test_rows_that_drafts_have_moved_do_not_go_on() -> None:
    model, models = wrapper("qwen2_vl")
    given = shown("qwen2_vl")
    out = model.generate(
        **given.inputs, **{**GREEDY, "max_new_tokens": 8}, assistant_model=models[1], num_assistant_tokens=3,
        return_dict_in_generate=True,
    )  # fmt: skip
    cache = out["cache"] if "cache" in out else out["past_key_values"]
    mask = torch.cat([given.attention_mask, torch.ones(3, 8, dtype=torch.long)], dim=1)
    assert None in cache.positions.values()  # not all rows kept equally much
    with pytest.raises(ValueError, match="does not hold the prompt with pictures of the member 'base' as it was read"):
        model.generate(out.sequences, attention_mask=mask[:, : out.sequences.shape[1]], past_key_values=cache, **GREEDY)


def test_pictures_are_not_shown_behind_a_cache() -> None:
    model, _ = wrapper("qwen2_vl")
    given = shown("qwen2_vl")
    cache = model.generate(**given.inputs, **GREEDY, return_dict_in_generate=True)
    held_states = cache["cache"] if "cache" in cache else cache["past_key_values"]
    with pytest.raises(ValueError, match="Pictures are shown with a whole prompt"):
        model.generate(**given.inputs, past_key_values=held_states, **GREEDY)


# Heads of other widths ----------------------------------------------------------------------------------------------------


def test_a_head_that_is_wider_beside_one_of_text() -> None:
    """As 262,208 and 262,144, or 152,064 and 151,936: what only one member has is never generated."""
    base, tuned, reference = make("qwen2_vl", 1, vocab_size=VOCAB + 16), seeing("qwen2_vl", 2), seeing("qwen2_vl", 3)
    given, model = shown("qwen2_vl"), EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    out = model.generate(**given.inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    for i, sequence in enumerate(out.sequences):
        text = sequence[-NEW:]
        total: Any = 0.0
        for coefficient, each in ((1, base), (1, tuned), (-1, reference)):
            prompt, pictures = given.row(i)
            ids = torch.cat([prompt, text[:-1]])[None]
            told = {KINDS["qwen2_vl"]: kinds("qwen2_vl", ids)[KINDS["qwen2_vl"]]}
            with torch.no_grad():
                logits = each(input_ids=ids, use_cache=False, **pictures, **told).logits[0, len(prompt) - 1 :, :VOCAB]
            total = total + coefficient * logits.double()
        got = torch.stack([step[i] for step in out.logits])
        assert bool((got[:, VOCAB:] == -torch.inf).all())
        torch.testing.assert_close(got[:, :VOCAB].double().log_softmax(-1), total.log_softmax(-1), atol=5e-4, rtol=0)


# Saved and loaded ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_members_that_see_come_back_from_a_folder(family: str, tmp_path: Path) -> None:
    """Of one family whose configuration makes a model of text as well, and of one whose does not."""
    model, _ = wrapper(family)
    given = shown(family)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again.base) is type(model.base)
    assert torch.equal(again.generate(**given.inputs, **GREEDY), model.generate(**given.inputs, **GREEDY))
    made = EFTForCausalLM(again.config)  # of new weights
    assert type(made.tuned) is type(model.tuned)
