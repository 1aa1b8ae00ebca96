"""Every recipe against its formula, schedules, truncation and coefficients by row, under every way of decoding."""

from __future__ import annotations

import json
from typing import Any

import oracle
import pytest
import torch
from families import EOS, PAD, VOCAB, prompts, shared
from oracle import nucleus, plausible, within

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor, Truncation
from hf_eft.members.releases import cache_of
from hf_eft.recipe.combine import combine

HALF = 0.5
NAMES = {"base": 0, "tuned": 1, "reference": 2, "a": 3, "b": 4, "a_before": 5, "b_before": 6}


def log_probs(ids: torch.Tensor, *names: str) -> dict[str, torch.Tensor]:
    """Each member's log-probs for the token after `ids`, one row without padding, in doubles."""
    return {name: oracle.log_probs({"m": shared("llama", NAMES[name])}, {"m": 1.0}, ids) for name in names}


# A recipe, its formula written out, and how it prints.
RECIPES: dict[str, tuple[Combination, Any, str]] = {
    "alpha": (Combination.emulate(alpha=HALF), lambda m: m["base"] + HALF * (m["tuned"] - m["reference"]),
              "base + 0.5 tuned - 0.5 reference"),
    "beta": (Combination.emulate(beta=1.5), lambda m: m["tuned"] + 1.5 * (m["base"] - m["reference"]),
             "1.5 base + tuned - 1.5 reference"),
    "proxy": (Combination.proxy(1.2), lambda m: m["base"] + 1.2 * (m["tuned"] - m["reference"]),
              "base + 1.2 tuned - 1.2 reference"),
    "experts": (Combination.experts(2.0, 0.6), lambda m: within(m["base"], 0.6, m["base"] + 2 * (m["tuned"] - m["reference"])),
                "base + 2 tuned - 2 reference, only within the nucleus of base of mass 0.6"),
    "steer": (Combination.steer({"a": 0.7, "b": 0.2}), lambda m: m["base"] + 0.7 * m["a"] + 0.2 * m["b"] - 0.9 * m["reference"],
              "base + 0.7 a + 0.2 b - 0.9 reference"),
    "own references": (
        Combination.steer({"a": 0.7, "b": 0.3}, references={"a": "a_before", "b": "b_before"}),
        lambda m: m["base"] + 0.7 * (m["a"] - m["a_before"]) + 0.3 * (m["b"] - m["b_before"]),
        "base + 0.7 a + 0.3 b - 0.7 a_before - 0.3 b_before",
    ),
    "one own reference": (
        Combination.steer({"a": 0.7, "b": 0.3}, references={"b": "b_before"}),
        lambda m: m["base"] + 0.7 * (m["a"] - m["reference"]) + 0.3 * (m["b"] - m["b_before"]),
        "base + 0.7 a + 0.3 b - 0.7 reference - 0.3 b_before",
    ),
    "DeRa": (Combination.interpolate(0.3), lambda m: 0.7 * m["reference"] + 0.3 * m["tuned"], "0.3 tuned + 0.7 reference"),
    "MOD": (Combination.mix({"a": 0.4, "b": 0.6}), lambda m: 0.4 * m["a"] + 0.6 * m["b"], "0.4 a + 0.6 b"),
    "contrast": (Combination.contrast(0.5, 0.1), lambda m: plausible(m["base"], 0.1, 1.5 * m["base"] - 0.5 * m["reference"]),
                 "1.5 base - 0.5 reference, only where p_base >= 0.1 of its maximum"),
    "guide": (Combination.guide(1.5), lambda m: m["reference"] + 1.5 * (m["base"] - m["reference"]), "1.5 base - 0.5 reference"),
    "keep": (Combination.emulate(truncation=Truncation("keep", 0.6)),
             lambda m: torch.where(nucleus(m["tuned"], 0.6), m["tuned"] + m["base"] - m["reference"], m["tuned"]),
             "base + tuned - reference, re-weighted within the nucleus of tuned of mass 0.6"),
    "drop": (Combination.emulate(truncation=Truncation("drop", 0.6)),
             lambda m: within(m["tuned"], 0.6, m["tuned"] + m["base"] - m["reference"]),
             "base + tuned - reference, only within the nucleus of tuned of mass 0.6"),
}  # fmt: skip


def model_for(recipe: Combination) -> EFTForCausalLM:
    given = {name: shared("llama", NAMES[name]) for name in recipe.coefficients}
    base, reference = given.pop("base", None), given.pop("reference", None)
    tuned = given if list(given) != ["tuned"] else given["tuned"]
    return EFTForCausalLM.from_models(base, tuned=tuned or None, reference=reference, combination=recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_its_formula_at_every_step(name: str) -> None:
    recipe, formula, printed = RECIPES[name]
    assert str(recipe) == printed
    model, inputs = model_for(recipe), prompts("left")
    out = model.generate(
        **inputs, max_new_tokens=5, min_new_tokens=5, output_logits=True, return_dict_in_generate=True, do_sample=False
    )
    for step in range(5):
        for row in range(3):
            keep = inputs["attention_mask"][row].bool()
            length = inputs["input_ids"].shape[1] + step
            ids = torch.cat([out.sequences[row, : len(keep)][keep], out.sequences[row, len(keep) : length]])
            expected = formula(log_probs(ids, *recipe.coefficients)).log_softmax(-1)
            got = out.logits[step][row].double().log_softmax(-1)
            assert torch.equal(got.isfinite(), expected.isfinite())
            torch.testing.assert_close(got, expected, atol=5e-4, rtol=1e-3)


def schedule(t: int) -> float:
    return 1.0 - 0.15 * t


def test_how_schedules_print_and_what_they_are() -> None:
    assert str(Combination.emulate(alpha=schedule)) == "base + schedule(t) tuned + f(t) reference"
    assert str(Combination.interpolate([0.0, 1.0])) == "(0, 1) tuned + (1, 0) reference"
    recipe = Combination.emulate(alpha=[1.0, 0.5])
    assert recipe.scheduled
    assert not Combination.emulate().scheduled
    assert recipe.at(range(3), ("base", "tuned", "reference", "other")).tolist() == [
        [1, 1, -1, 0],
        [1, 0.5, -0.5, 0],
        [1, 0.5, -0.5, 0],
    ]
    assert Combination.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    with pytest.raises(ValueError, match="callables, which are not saved, nor rules of your own"):
        Combination.from_dict(Combination.emulate(alpha=schedule).to_dict())
    with pytest.raises(ValueError, match="'tuned' must be a finite number, got nan"):
        Combination.emulate(alpha=lambda t: float("nan")).at([0], ("tuned",))
    with pytest.raises(ValueError, match="is a schedule"):
        combine({"base": torch.zeros(1, 1, 4), "tuned": torch.zeros(1, 1, 4), "reference": torch.zeros(1, 1, 4)}, recipe)


def by_hand(inputs: dict[str, torch.Tensor], alphas: Any, steps: int, recipe: Any = None) -> list[list[int]]:
    """Greedy decoding a token at a time, a new recipe each time."""
    made = recipe or (lambda alpha: Combination.emulate(alpha=alpha))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("qwen3", 1), reference=shared("qwen3", 2))
    for t in range(steps):
        model.combination = made(alphas(t))
        ids = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, eos_token_id=None)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids.tolist()


@pytest.mark.parametrize("kind", ["callable", "sequence"])
def test_schedules_under_every_way_of_decoding(kind: str) -> None:
    inputs, steps = prompts("left"), 8
    base, tuned, reference = shared("llama", 0), shared("qwen3", 1), shared("qwen3", 2)
    expected = by_hand(inputs, schedule, steps)
    assert expected != by_hand(inputs, lambda t: 1.0, steps)
    alpha = schedule if kind == "callable" else [schedule(t) for t in range(steps)]
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=alpha)
    options = {"max_new_tokens": steps, "eos_token_id": None}
    for extra in (
        {}, {"assistant_model": model.tuned, "num_assistant_tokens": 3}, {"assistant_model": model.tuned}, {"use_cache": False},
        {"prefill_chunk_size": 4}, {"cache_implementation": "static"}, {"num_beams": 1, "num_return_sequences": 1},
    ):  # fmt: skip
        assert model.generate(**inputs, **options, **extra).tolist() == expected, extra
    add_on = EFTLogitsProcessor(tuned, reference, alpha=alpha, attention_mask=inputs["attention_mask"])
    assert base.generate(**inputs, **options, logits_processor=[add_on]).tolist() == expected
    one = {name: tensor[1:2] for name, tensor in inputs.items()}  # the row without padding
    theirs = model.generate(**one, **options, assistant_model=shared("qwen3", 1), assistant_early_exit=None)
    assert theirs.tolist() == expected[1:2]
    with pytest.raises(ValueError, match="schedule of coefficients counts from the end"):
        EFTLogitsProcessor(tuned, reference, alpha=alpha, pad_token_id=PAD)(inputs["input_ids"], torch.zeros(3, VOCAB))


def test_beams_with_a_schedule_equal_beams_with_the_coefficients_of_each_step() -> None:
    inputs = prompts("left")
    base, tuned, reference = shared("llama", 0), shared("qwen3", 1), shared("qwen3", 2)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=schedule)
    add_on = EFTLogitsProcessor(tuned, reference, alpha=schedule, attention_mask=inputs["attention_mask"])
    options = {"num_beams": 3, "max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True}
    ours, theirs = model.generate(**inputs, **options), base.generate(**inputs, logits_processor=[add_on], **options)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, atol=1e-4, rtol=0)
    model.combination = Combination.emulate()
    assert model.generate(**inputs, **options).sequences.tolist() != ours.sequences.tolist()


def test_forward_counts_a_schedule_from_the_first_token() -> None:
    model = model_for(Combination.emulate(alpha=schedule))
    ids = prompts("even")["input_ids"]
    by_member = model.member_logits(ids)
    logits = model(ids).logits
    for t in range(ids.shape[1]):
        expected = combine({name: x[:, t : t + 1] for name, x in by_member.items()}, Combination.emulate(alpha=schedule(t)))
        torch.testing.assert_close(logits[:, t : t + 1], expected)
    first = model(ids[:, :2], use_cache=True)
    second = model(ids[:, 2:], cache=cache_of(first), use_cache=True)
    torch.testing.assert_close(second.logits, logits[:, 2:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, logits[:, -2:])


@pytest.mark.parametrize("rule", ["keep", "drop", "base", "plausible"])
@pytest.mark.parametrize("p", [0.95, 0.5, 1e-6])
def test_truncation_under_every_way_of_decoding(rule: Any, p: float) -> None:
    base, tuned, reference = shared("llama", 0), shared("qwen3", 1), shared("qwen3", 2)
    inputs = prompts("left")
    recipe = Combination.emulate(truncation=Truncation(rule, p))
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=recipe)
    add_on = EFTLogitsProcessor(tuned, reference, combination=recipe, pad_token_id=PAD)
    out = model.generate(**inputs, max_new_tokens=8, output_logits=True, return_dict_in_generate=True)
    assert all(bool(logits.isfinite().any(-1).all()) for logits in out.logits), "a token is always left"
    expected = out.sequences.tolist()
    assert base.generate(**inputs, max_new_tokens=8, logits_processor=[add_on]).tolist() == expected
    assert model.generate(**inputs, max_new_tokens=8, assistant_model=model.tuned).tolist() == expected
    for options in ({"num_beams": 3}, {"do_sample": True}):
        torch.manual_seed(1)
        ours = model.generate(**inputs, max_new_tokens=8, **options)
        torch.manual_seed(1)
        assert base.generate(**inputs, max_new_tokens=8, logits_processor=[add_on], **options).tolist() == ours.tolist()
    match = {"do_sample": True, "coupling": "match", "seed": 2, "max_new_tokens": 8}
    assert model.generate(**inputs, **match, assistant_model=model.tuned).tolist() == model.generate(**inputs, **match).tolist()


@pytest.mark.parametrize("way", ["greedy", "match", "beams", "speculation", "speculation, match"])
def test_32_rows_of_32_strengths_are_32_single_runs(way: str) -> None:
    base, tuned, reference = shared("llama", 0), shared("qwen3", 1), shared("gemma3", 2)
    model = EFTForCausalLM.from_models(
        base, tuned={"helpful": tuned, "harmless": reference}, reference=shared("qwen3", 2),
        combination=Combination.steer({"helpful": 1.0, "harmless": 0.0}),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    ids, mask = torch.full((32, 9), PAD), torch.zeros(32, 9, dtype=torch.long)
    for row in range(32):
        length = int(torch.randint(1, 10, (1,), generator=generator))
        ids[row, -length:] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, -length:] = 1
    weights = [row / 31 for row in range(32)]
    rows = torch.tensor([[1.0, w, 1 - w, -1.0] for w in weights])
    drafts = {"assistant_model": model.members["helpful"]} if way.startswith("spec") else {}
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3 if way == "beams" else 1, **drafts}
    seeds = list(range(100, 132))
    if way.endswith("match"):
        options |= {"do_sample": True, "coupling": "match"}
    together = model.generate(
        input_ids=ids, attention_mask=mask, coefficients=rows, **options, **({"seed": seeds} if way.endswith("match") else {})
    )
    different = set()
    for row, w in enumerate(weights):
        model.combination = Combination.steer({"helpful": w, "harmless": 1 - w})
        alone = model.generate(
            input_ids=ids[row : row + 1, mask[row].bool()],
            **options,
            **({"seed": [seeds[row]]} if way.endswith("match") else {}),
        )[0, int(mask[row].sum()) :].tolist()
        got = together[row, 9:].tolist()
        assert got[: len(alone)] == alone
        # transformers fills a search with ends where the pad is 0.
        assert set(got[len(alone) :]) <= ({PAD, EOS} if way == "beams" else {PAD})
        different.add(tuple(alone))
    assert len(different) > 16


def test_bad_recipes() -> None:
    for make, match in (
        (lambda: Combination.steer({"a": 1.0}, references={"b": "x"}), "names \\['b'\\]"),
        (lambda: Combination.steer({"a": 1.0}, references={"a": "base"}), "'base' cannot be the reference"),
        (lambda: Combination.emulate(alpha=[1.0, float("inf")]), "'tuned' must be a finite number, got inf"),
        (lambda: Combination.emulate(alpha=[]), "'tuned' must be a finite number"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
