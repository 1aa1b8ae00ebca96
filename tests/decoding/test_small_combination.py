"""The small combination drafts: the tokens stay those of plain decoding, and what is drafted is the recipe without its base."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import oracle
import pytest
import torch
from adapted import PEFT_SAYS
from families import RECURRENT, lora, prompts, shared, tokenizer
from random_cases import ROLLING, double, random_case

from hf_eft import Combination, EFTForCausalLM, Truncation
from hf_eft.decoding.speculative.schedule import Automatic
from hf_eft.members.releases import cache_of

pytestmark = PEFT_SAYS
RECIPES: list[Combination] = [
    *(Combination.emulate(alpha=alpha) for alpha in (0.0, 0.3, 1.0, 1.6)),
    *(Combination.emulate(beta=beta) for beta in (0.6, 1.5)),
    Combination.emulate(alpha=[1.5, 0.2, 0.7] * 9),
    Combination.emulate(beta=lambda position: 1 + 0.1 * position),
    *(Combination.emulate(alpha=0.6, truncation=Truncation(rule, 0.8)) for rule in ("keep", "drop", "base")),
    Combination.contrast(0.5, 0.1),
]


@pytest.mark.parametrize(
    "pool, start",
    [
        (ROLLING, 0),
        pytest.param(ROLLING, 25, marks=pytest.mark.nightly),
        pytest.param(ROLLING, 50, marks=pytest.mark.nightly),
        ([*RECURRENT, "llama"], 100),
    ],
)
def test_random_cases_give_the_tokens_of_plain_decoding(pool: list[str], start: int) -> None:
    for number in range(start, start + 25):
        rng = random.Random(number)
        model, inputs, options, how = random_case(number, pool, rows=4)
        model.combination = rng.choice(RECIPES)
        how = {"num_assistant_tokens": rng.choice([1, 2, 3, 5, 8])} if rng.random() < 0.7 else {}
        expected = said(model, **inputs, **options)
        got = said(model, **inputs, **options, **how, assistant_model=model.small_combination)
        assert got == expected, f"case {number}: {model.combination} {options} {how}"


def said(model: EFTForCausalLM, **options: Any) -> Any:
    """What is generated; or that processors forbid every token which a truncation leaves, of whichever row."""
    try:
        return model.generate(**options).tolist()
    except ValueError as error:
        return str(error)[:30]


# What is drafted ------------------------------------------------------------------------------------------------------


def small(models: Mapping[str, Any], recipe: Combination, text: torch.Tensor, position: int) -> int:
    """The token that the small combination finds most likely, by the formula: reference + sum of the deltas, in doubles."""
    names = list(models)
    coefficients = dict(zip(names, recipe.at([position], names)[0].double().tolist(), strict=True))
    coefficients["reference"] += coefficients.pop("base")
    logits = {name: oracle.along(model, text)[-1] for name, model in models.items() if name != "base"}
    truncation = None if recipe.truncation is None else (recipe.truncation.rule, recipe.truncation.p)
    return int(oracle.combined({**logits, "base": logits["reference"]}, {**coefficients, "base": 0.0}, truncation).argmax())


def rounds(models: Mapping[str, Any], recipe: Combination, target: list[int], prompt: int, block: int) -> list[int]:
    """How many tokens each round of a greedy call keeps whose text is `target`."""
    kept, known = [], prompt + 1
    while known < len(target):
        text = target[:known]
        for _ in range(min(block, len(target) - known - 1)):
            text = [*text, small(models, recipe, torch.tensor(text), len(text) - prompt)]
        agreed = [a == b for a, b in zip(text[known:], target[known:], strict=False)]
        kept.append(agreed.index(False) if False in agreed else len(agreed))
        known += kept[-1] + 1
    return kept


STEERED = Combination.steer({"kind": 0.9, "brief": -0.4})
UNNAMED = Combination({"base": -1.0, "tuned": 2.0})  # the reference has no coefficient but that of the base


@pytest.mark.parametrize("recipe", [*RECIPES[1:], STEERED, UNNAMED], ids=str)
def test_what_is_drafted_is_the_recipe_with_the_reference_in_the_place_of_the_base(recipe: Combination) -> None:
    reference = double("llama", 2)
    base = copy.deepcopy(reference)  # so that the two agree now and then
    with torch.no_grad():
        base.model.layers[1].mlp.down_proj.weight.mul_(0.6)
    tuned = {"kind": double("llama", 1), "brief": double("llama", 5)} if recipe is STEERED else {"tuned": double("llama", 1)}
    models = {"base": base, **tuned, "reference": reference}
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=recipe)
    ids = prompts("one")["input_ids"]
    whole = model.generate(ids, max_new_tokens=24, eos_token_id=None)
    expected = rounds(models, recipe, whole[0].tolist(), ids.shape[1], 3)
    got = model.generate(
        ids, max_new_tokens=24, eos_token_id=None, assistant_model=model.small_combination, num_assistant_tokens=3
    )
    assert got.tolist() == whole.tolist()
    assert (model.speculation.rounds, sum(model.speculation.accepted)) == (len(expected), sum(expected))
    assert sum(expected) > 4
    assert set(model.speculation.drafters) <= {"small combination", ""}


def test_each_row_s_coefficients_are_those_of_its_draft() -> None:
    reference, tuned = double("llama", 2), double("llama", 1)
    model = EFTForCausalLM.from_models(copy.deepcopy(reference), tuned=tuned, reference=reference)
    inputs = prompts("left")
    # The base is as the reference is: with the row's own coefficients, and with no others, every draft is the target's choice.
    options = {"coefficients": torch.tensor([[1.0, 0.2, -0.2], [1.0, 2.0, -2.0], [3.0, 1.0, -1.5]]), "eos_token_id": None}
    model.generate(**inputs, **options, max_new_tokens=13, assistant_model=model.small_combination, num_assistant_tokens=3)
    assert model.speculation.acceptance == [1.0, 1.0, 1.0]


# What is read ---------------------------------------------------------------------------------------------------------


def counted(model: EFTForCausalLM, **options: Any) -> tuple[torch.Tensor, dict[str, list[int]]]:
    """What is generated, and how many tokens each forward of each member's model read."""
    read: dict[str, list[int]] = {}
    parts = {**model._members.distinct_models, **{"+".join(s.names): s.member.model for s in model._members.stacks}}
    hooks = [
        part.register_forward_pre_hook(
            lambda m, a, k, n=name: read.setdefault(n, []).append(k["input_ids"].shape[1]), with_kwargs=True
        )
        for name, part in parts.items()
    ]
    out = model.generate(**options)
    for hook in hooks:
        hook.remove()
    return out, read


def test_no_member_reads_a_token_twice_and_the_cache_goes_on() -> None:
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double("gpt2", 1), reference=double("gpt2", 2), alpha=0.4)
    inputs = prompts("one")
    options: dict[str, Any] = {**inputs, "max_new_tokens": 20, "eos_token_id": None}
    draft: dict[str, Any] = {"assistant_model": model.small_combination, "num_assistant_tokens": 4}
    out, read = counted(model, **options, **draft, return_dict_in_generate=True)
    drafted, report = sum(model.speculation.blocks), model.speculation
    assert sum(read["base"]) == 6 + drafted + report.rounds and len(read["base"]) == 1 + report.rounds
    assert read["tuned"] == read["reference"] == [6] + [1] * (drafted + report.bonus_steps)
    assert {cache.get_seq_length() for cache in cache_of(out).members.values()} == {6 + 19}
    more = model.generate(out.sequences, cache=cache_of(out), max_new_tokens=8, eos_token_id=None, **draft)
    assert more.tolist() == model.generate(**{**options, "max_new_tokens": 28}).tolist()


@pytest.mark.parametrize("padding", ["one", "left"])
def test_members_on_adapters_draft_in_one_pass(padding: str) -> None:
    adapter = lora(copy.deepcopy(double("llama", 1)))
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=adapter, alpha=0.4)
    assert model._members.stacks[0].names == ("tuned", "reference")
    options: dict[str, Any] = {**prompts(padding), "max_new_tokens": 12, "eos_token_id": None}
    draft: dict[str, Any] = {"assistant_model": model.small_combination, "num_assistant_tokens": 3}
    plain = model.generate(**options)
    out, read = counted(model, **options, **draft)
    assert out.tolist() == plain.tolist()
    assert set(read) == {"base", "tuned+reference"}
    assert len(read["tuned+reference"]) == 1 + sum(model.speculation.blocks) + model.speculation.bonus_steps


def test_without_a_draft_members_on_adapters_step_together_whoever_would_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Automatic, "next", lambda schedule, rows: (0, 0))
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=lora(copy.deepcopy(double("llama", 1))), alpha=0.4)
    options: dict[str, Any] = {**prompts("left"), "max_new_tokens": 9, "eos_token_id": None}
    plain, expected = counted(model, **options)
    for assistant in (model.tuned, model.small_combination):
        out, read = counted(model, **options, assistant_model=assistant)
        assert out.tolist() == plain.tolist()
        assert read == expected


# Who drafts -----------------------------------------------------------------------------------------------------------


def test_who_may_draft() -> None:
    base, tuned, reference = double("llama", 0), double("llama", 1), double("llama", 2)
    both, ids = {"tuned", "small combination"}, prompts("one")["input_ids"]

    def asked(assistant: str, recipe: Combination, **options: Any) -> set[str]:
        model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=recipe)
        model.generate(ids, max_new_tokens=6, eos_token_id=None, assistant_model=getattr(model, assistant), **options)
        return set(model.speculation.agreement)

    half, whole = Combination.emulate(0.5), Combination.emulate(1.0)
    assert asked("tuned", half) == asked("small_combination", half) == both
    assert asked("tuned", whole) == {"tuned"}  # they are one
    assert asked("small_combination", whole) == {"small combination"}
    assert asked("tuned", whole, coefficients=torch.tensor([[1.0, 0.5, -0.5]])) == both
    assert asked("base", half) == {"base"} and asked("reference", half) == {"reference"}
    assert asked("tuned", half, num_assistant_tokens=2) == set()  # nothing is chosen, and nothing measured for it


@pytest.mark.parametrize("padding", ["one", "left"])
@pytest.mark.parametrize("families", [("llama", "gpt2"), ("gemma3", "llama"), ("falcon_h1", "qwen3_5"), ("mamba2", "mamba2")])
def test_drafters_that_take_turns_give_the_tokens_of_plain_decoding(
    monkeypatch: pytest.MonkeyPatch, families: tuple[str, str], padding: str
) -> None:
    model = EFTForCausalLM.from_models(
        double(families[0], 0), tuned=double(families[1], 1), reference=double(families[1], 2), alpha=0.4
    )
    inputs, turns = prompts(padding), [(0, 2), (1, 3), (0, 0), (1, 1), (1, 0)]
    for options in ({}, {"do_sample": True, "coupling": "match", "seed": 5, "top_k": 9, "repetition_penalty": 1.2}):
        plain = model.generate(**inputs, **options, max_new_tokens=14)
        with monkeypatch.context() as patch:
            patch.setattr(Automatic, "next", lambda schedule, rows: turns[schedule.rounds % len(turns)])
            fast = model.generate(**inputs, **options, max_new_tokens=14, assistant_model=model.tuned)
        assert fast.tolist() == plain.tolist()
    assert {"tuned", "small combination", ""} == set(model.speculation.drafters)


@pytest.mark.parametrize("who", [0, 1])
def test_agreement_is_measured_of_those_who_do_not_draft(monkeypatch: pytest.MonkeyPatch, who: int) -> None:
    reference, recipe = double("llama", 2), Combination.emulate(alpha=0.4)
    base = copy.deepcopy(reference)
    with torch.no_grad():
        base.model.layers[1].mlp.down_proj.weight.mul_(0.6)
    models = {"base": base, "tuned": double("llama", 1), "reference": reference}
    model = EFTForCausalLM.from_models(**models, combination=recipe)
    monkeypatch.setattr(Automatic, "next", lambda schedule, rows: (who, 2 if schedule.rounds % 2 else 0))
    ids = prompts("one")["input_ids"]
    text = model.generate(ids, max_new_tokens=20, eos_token_id=None, assistant_model=model.tuned)[0]
    whole = {"tuned": [], "small combination": []}
    for length in range(7, 26):  # every token but the first, which no round decides
        whole["tuned"].append(int(oracle.along(models["tuned"], text[:length])[-1].argmax()) == int(text[length]))
        whole["small combination"].append(small(models, recipe, text[:length], length - 6) == int(text[length]))
    at, counted = 0, {name: [0, 0] for name in whole}
    drafter, other = ("tuned", "small combination") if who == 0 else ("small combination", "tuned")
    for block in model.speculation.blocks:
        first = next((i for i in range(block) if not whole[drafter][at + i]), block)
        places = range(at, at + max(1, min(first + 1, block)))
        for name in (drafter, other):
            counted[name][0] += sum(whole[name][i] for i in places)
            counted[name][1] += len(places)
        at += first + 1
    assert at == 19 and 2 in model.speculation.blocks
    assert model.speculation.agreement == {name: agreed / seen for name, (agreed, seen) in counted.items()}
    assert counted["tuned"][0] < counted["small combination"][0]


def test_when_sampling_agreement_is_how_probable_a_draft_is_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"base": double("llama", 0), "tuned": double("llama", 1), "reference": double("llama", 2)}
    model = EFTForCausalLM.from_models(**models, alpha=0.4)
    monkeypatch.setattr(Automatic, "next", lambda schedule, rows: (0, 0))
    torch.manual_seed(3)
    ids = prompts("one")["input_ids"]
    text = model.generate(
        ids, max_new_tokens=6, eos_token_id=None, do_sample=True, temperature=0.8, top_k=0, assistant_model=model.tuned
    )[0]
    shares = []
    for length in range(7, 12):
        logits = {name: oracle.along(each, text[:length])[-1] for name, each in models.items()}
        target = oracle.combined(logits, {"base": 1.0, "tuned": 0.4, "reference": -0.4})
        shares.append(float(torch.minimum((target / 0.8).softmax(-1), (logits["tuned"] / 0.8).softmax(-1)).sum()))
    assert model.speculation.agreement["tuned"] == pytest.approx(sum(shares) / 5, abs=1e-4)


# What else ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", [Truncation("keep", 0.5), Truncation("drop", 0.5)])
def test_tokens_that_not_all_know_count_in_the_nucleus_of_the_member_that_drafts(truncation: Truncation) -> None:
    models = {"base": shared("llama", 0), "tuned": shared("llama", 1), "reference": shared("llama", 2)}
    small_tokenizer = tokenizer()
    small_tokenizer.backend_tokenizer.model = _some_words(small_tokenizer)
    names = {"base": tokenizer(), "tuned": tokenizer(), "reference": small_tokenizer}
    model = EFTForCausalLM.from_models(**models, alpha=0.9, tokenizers=names)
    model.combination = Combination.emulate(alpha=0.9, truncation=truncation)
    options: dict[str, Any] = {
        **prompts("left"), "max_new_tokens": 10, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True
    }  # fmt: skip
    plain = model.generate(**options)
    for assistant in (model.tuned, model.small_combination):
        fast = model.generate(**options, assistant_model=assistant, num_assistant_tokens=3)
        assert fast.sequences.tolist() == plain.sequences.tolist()
        for a, b in zip(fast.logits, plain.logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def _some_words(full: Any) -> Any:
    from tokenizers import models

    return models.WordLevel({token: i for token, i in full.get_vocab().items() if i < 40}, unk_token="<eos>")


def model_of(recipe: Combination, **members: Any) -> EFTForCausalLM:
    tuned = {name: member for name, member in members.items() if name not in ("base", "reference")}
    return EFTForCausalLM.from_models(
        members.get("base"), tuned=tuned or None, reference=members.get("reference"), combination=recipe
    )


@pytest.mark.parametrize(
    "recipe, seeds, options, message",
    [
        (Combination.interpolate(0.4), {"tuned": 1, "reference": 2}, {}, "recipe without its base, and 0.4 tuned"),
        (Combination.interpolate(0.4), {"tuned": 1, "reference": 2}, {"coefficients": torch.tensor([[0.4, 0.6]])}, "has none: all"),
        (Combination({"base": 0.0, "tuned": 1.0, "reference": 0.5}), {"base": 0, "tuned": 1, "reference": 2}, {}, "has none: all"),
        (Combination.mix({"a": 0.4, "b": 0.6}), {"a": 1, "b": 2}, {}, "has none: all its members would draft"),
        (Combination({"base": 1.0, "tuned": 0.5}), {"base": 0, "tuned": 1}, {}, "in the place of the base, and the members of"),
        (Combination({"base": 1.0, "reference": -1.0}), {"base": 0, "reference": 2}, {}, "nothing is left of base - reference"),
        (Combination.emulate(0.5), {"base": 0, "tuned": 1, "reference": 0}, {}, "'base' and 'reference' are one model"),
        (Combination.emulate(0.5), {"base": 0, "tuned": 0, "reference": 2}, {}, "'base' and 'tuned' are one model"),
        (Combination.emulate(0.5), {"base": 0, "tuned": 1, "reference": 2}, {"assistant_tokenizer": 1}, "leave out `assistant_tok"),
        (Combination.emulate(0.5), {"base": 0, "tuned": 1, "reference": 2}, {"assistant_early_exit": 1}, "assistant_early_exit"),
        (Combination.emulate(0.5), {"base": 0, "tuned": 1, "reference": 2}, {"use_cache": False}, "needs a cache"),
    ],
)  # fmt: skip
def test_refused_by_name(recipe: Combination, seeds: dict[str, int], options: dict[str, Any], message: str) -> None:
    model = model_of(recipe, **{name: shared("llama", seed) for name, seed in seeds.items()})
    with pytest.raises(ValueError, match=message):
        model.generate(**prompts("one"), max_new_tokens=4, assistant_model=model.small_combination, **options)
    if not options:  # a tuned member drafts all the same, alone
        for name in model.combination.tuned_names:
            model.generate(**prompts("one"), max_new_tokens=4, assistant_model=model.members[name])


def test_another_model_s_small_combination_is_refused() -> None:
    models = [shared("llama", seed) for seed in range(3)]
    model, other = (EFTForCausalLM.from_models(*models, alpha=0.5) for _ in range(2))
    with pytest.raises(ValueError, match=r"the small combination of base \+ 0.5 tuned - 0.5 reference, of another model"):
        model.generate(**prompts("one"), max_new_tokens=4, assistant_model=other.small_combination)
