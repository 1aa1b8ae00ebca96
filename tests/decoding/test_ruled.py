"""Coefficients by rule: under every way of decoding the tokens are those of whole forwards, with what the rule says at each token."""

from __future__ import annotations

import math
from typing import Any

import oracle
import paged
import pytest
import ruling
import thinking
import torch
from families import PAD, build
from ruling import RULES, STEPS, TOKENS, model
from thinking import PLAN, THINK, prompts

from hf_eft import Combination, Divergence, EFTForCausalLM, EFTLogitsProcessor, Entropy
from hf_eft.decoding.speculative.coupling import Noise
from hf_eft.recipe.combine import combine

OPTIONS: dict[str, Any] = {"max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": PAD}
BATCH = prompts(4)
WIDTH = BATCH["input_ids"].shape[1]
NAN = math.nan


def add_on(rule: Any, **more: Any) -> EFTLogitsProcessor:
    tuned, reference = thinking.member("qwen3", 1), thinking.member("qwen3", 2)
    return EFTLogitsProcessor(tuned, reference, combination=Combination.emulate(alpha=rule), **more)


def alone(row: int) -> dict[str, torch.Tensor]:
    keep = BATCH["attention_mask"][row].bool()
    return {name: tensor[row : row + 1, keep] for name, tensor in BATCH.items()}


@pytest.fixture(scope="module", params=sorted(RULES))
def case(request: pytest.FixtureRequest) -> tuple[Any, list[list[int]], set[float]]:
    """A rule, the rows that follow by its formula, and what it says on the way."""
    rule, says = RULES[request.param]
    heard: set[float] = set()

    def listen(said: ruling.Said) -> float:
        heard.add(round(says(said), 3))
        return says(said)

    rows = ruling.greedy(BATCH, listen)
    assert len(heard) > 1  # no constant
    return rule, rows, heard


def test_greedy_in_every_way(case: Any) -> None:
    rule, expected, _ = case
    combined = model(rule)
    ways: list[dict[str, Any]] = [
        {}, {"use_cache": False}, {"prefill_chunk_size": 4}, {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 3}, {"assistant_model": combined.tuned},
        {"assistant_model": thinking.member("llama", 7), "num_assistant_tokens": 3},
    ]  # fmt: skip
    drafts = (combined.tuned, combined.base, combined.small_combination)
    ways += [{"assistant_model": who, "num_assistant_tokens": block} for who in drafts for block in (1, 4)]
    for how in ways:
        assert combined.generate(**BATCH, **OPTIONS, **how)[:, WIDTH:].tolist() == expected, how
    given = torch.tensor([[1.0, NAN, NAN]] * 4)
    assert combined.generate(**BATCH, **OPTIONS, coefficients=given)[:, WIDTH:].tolist() == expected


def test_the_add_on(case: Any) -> None:
    rule, expected, _ = case
    options = {**OPTIONS, "logits_processor": [add_on(rule, attention_mask=BATCH["attention_mask"])]}
    assert thinking.member("llama", 0).generate(**BATCH, **options)[:, WIDTH:].tolist() == expected
    options["logits_processor"] = [add_on(rule, pad_token_id=1)]
    drafted = thinking.member("llama", 0).generate(**alone(2), **options, assistant_model=thinking.member("qwen3", 1))
    assert drafted[0, -STEPS:].tolist() == expected[2]


def test_beams(case: Any) -> None:
    rule, _, _ = case
    says = next(says for known, says in RULES.values() if known is rule)
    searched = {**OPTIONS, "max_new_tokens": 6, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    together = model(rule).generate(**BATCH, **searched)
    stateless = oracle.Stateless(lambda ids: torch.stack([ruling.log_probs(row, says) for row in ids]).float(), TOKENS)
    for row in range(1):
        ids = alone(row)["input_ids"]
        found = stateless.generate(ids, **searched, use_cache=False)
        assert together.sequences[row, WIDTH:].tolist() == found.sequences[0, ids.shape[1] :].tolist()
        torch.testing.assert_close(
            together.sequences_scores[row].double(), found.sequences_scores[0].double(), atol=1e-3, rtol=0
        )


def test_sampled_rows_are_those_of_their_seeds(case: Any) -> None:
    rule, _, _ = case
    says = next(says for known, says in RULES.values() if known is rule)
    seeds, combined, rows = list(range(20, 24)), model(rule), []
    for n in range(2):
        row, noise = alone(n)["input_ids"][0], Noise([seeds[n]])
        for step in range(STEPS):
            row = torch.cat([row, noise.pick(ruling.log_probs(row, says)[None], [step])])
        rows.append(row[-STEPS:].tolist())
    options = {**OPTIONS, "do_sample": True, "coupling": "match", "seed": seeds}
    for how in ({}, {"assistant_model": combined.small_combination, "num_assistant_tokens": 3}):
        assert combined.generate(**BATCH, **options, **how)[:2, WIDTH:].tolist() == rows, how


@pytest.mark.parametrize("which", [name for name in RULES if name != "written"])  # that one is the user's to compile
def test_a_compiled_combination_is_the_same(which: str) -> None:
    recipe = Combination.emulate(alpha=RULES[which][0])
    logits = {name: oracle.along(each, alone(1)["input_ids"][0])[None].float() for name, each in thinking.members().items()}
    compiled = torch.compile(lambda logits: combine(logits, recipe), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits), combine(logits, recipe), atol=1e-5, rtol=0)


def test_a_compiled_model_is_the_same() -> None:
    combined, ids = model(RULES["entropy"][0]), alone(1)["input_ids"]
    with torch.no_grad():
        compiled = torch.compile(lambda ids: combined(input_ids=ids, use_cache=False).logits, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(ids), combined(input_ids=ids).logits, atol=1e-5, rtol=0)


def test_continuous_batching() -> None:
    rule, says = RULES["entropy"]
    built = (build(family, seed, vocab_size=TOKENS) for family, seed in (("llama", 0), ("qwen3", 1), ("qwen3", 2)))
    combined = EFTForCausalLM.from_models(*built, combination=Combination.emulate(alpha=rule))
    rows = [alone(row)["input_ids"][0].tolist() for row in range(4)]
    combined.generation_config.eos_token_id = None
    config = paged.greedy(STEPS, eos_token_id=None)
    with torch.no_grad():
        got = paged.batched(combined, rows, config)
        assert (
            sum(a == b for a, b in zip(got, ruling.greedy(BATCH, says), strict=True)) >= 3
        )  # in float32 a tie may fall elsewhere
        assert got == paged.one_by_one(combined, rows, config)
        given = torch.tensor([[1.0, NAN, NAN], [1.0, 0.1, -0.1]] * 2)
        mixed = paged.batched(combined, rows, config, coefficients=given)
        assert mixed[::2] == got[::2]
        plain = EFTForCausalLM.from_models(*combined.members.values(), alpha=0.1)
        plain.generation_config.eos_token_id = None
        assert mixed[1::2] == paged.batched(plain, rows, config)[1::2]


def test_a_number_of_a_row_stands_in_for_the_rule_and_nan_for_nothing_else() -> None:
    combined, plain = model(RULES["kl"][0]), thinking.model(Combination.emulate(alpha=0.4))
    given = torch.tensor([[1.0, NAN, NAN], [1.0, 0.4, -0.4]] * 2)
    for how in ({}, {"assistant_model": combined.small_combination, "num_assistant_tokens": 3}, {"num_beams": 2}):
        own = {**how, "assistant_model": plain.small_combination} if "assistant_model" in how else how
        mixed = combined.generate(**BATCH, **OPTIONS, coefficients=given, **how)
        assert mixed[::2].tolist() == combined.generate(**BATCH, **OPTIONS, **how)[::2].tolist()
        assert mixed[1::2].tolist() == plain.generate(**BATCH, **OPTIONS, **own)[1::2].tolist()
    for wrong in (torch.tensor([[NAN, 1.0, -1.0]] * 4), torch.tensor([[1.0, math.inf, -1.0]] * 4)):
        with pytest.raises(
            ValueError, match=r"`coefficients` must be finite, got (nan for the member 'base'|inf for the member 'tuned')"
        ):
            combined.generate(**BATCH, **OPTIONS, coefficients=wrong)
    with pytest.raises(ValueError, match=r"for the member 'tuned' in row 0\. The recipe has no rule for 'tuned'"):
        plain.generate(**BATCH, **OPTIONS, coefficients=given)


def test_a_rule_in_one_phase_and_numbers_in_others() -> None:
    rule, says = RULES["js"]
    strengths: dict[str, Any] = {"think": rule, "plan": -0.5, "answer": 0.3}
    combined = thinking.model(Combination.emulate(alpha=strengths, phases=[THINK, PLAN]))
    rows = []
    for row in range(4):
        ids = alone(row)["input_ids"][0]
        for _ in range(STEPS):
            phase, token = thinking.standing(ids.tolist())
            number = strengths[phase]
            found = ruling.log_probs(ids, says if phase == "think" else lambda said, number=number: number).argmax()
            ids = torch.cat([ids, (found if token is None else torch.tensor(token))[None]])
        rows.append(ids[-STEPS:].tolist())
    drafts = (None, combined.tuned, combined.small_combination)
    for how in ({"assistant_model": who, "num_assistant_tokens": 3} if who is not None else {} for who in drafts):
        assert combined.generate(**BATCH, **OPTIONS, **how)[:, WIDTH:].tolist() == rows, how


def test_a_prompt_of_its_own_is_a_context_that_a_rule_compares() -> None:
    base = thinking.member("llama", 0)
    recipe = Combination.guide(1 + Divergence("base", "reference", most=1.5))
    combined = EFTForCausalLM.from_models(base, reference=base, combination=recipe)
    own = {"input_ids": BATCH["input_ids"][:, -3:], "attention_mask": BATCH["attention_mask"][:, -3:]}
    got = combined.generate(**BATCH, **OPTIONS, member_inputs={"reference": own})[:, WIDTH:].tolist()
    for row in range(3):
        with_context, without, new = alone(row)["input_ids"][0], own["input_ids"][row], []
        for _ in range(STEPS):
            one, other = (
                oracle.along(base, torch.cat([prompt, torch.tensor(new, dtype=torch.long)]))[-1].log_softmax(-1)
                for prompt in (with_context, without)
            )
            r = 1.5 * ruling.js(one.exp().tolist(), other.exp().tolist()) / math.log(2)
            new.append(int(((1 + r) * one - r * other).argmax()))
        assert got[row] == new


@pytest.mark.parametrize(
    "which, draws", [("kl", 4000), *(pytest.param(which, 60_000, marks=pytest.mark.nightly) for which in sorted(RULES))]
)
@pytest.mark.parametrize("who", ["tuned", "small"])
def test_drafts_by_ratio_leave_the_distribution_exact(who: str, which: str, draws: int) -> None:
    """The distribution of two tokens: chi-square at about 1 in 10,000."""
    rule, says = RULES[which]
    combined, ids = model(rule), alone(1)["input_ids"]
    first = ruling.log_probs(ids[0], says).exp()
    joint = {
        (a, b): float(first[a] * p)
        for a in range(TOKENS)
        for b, p in enumerate(ruling.log_probs(torch.cat([ids[0], torch.tensor([a])]), says).exp().tolist())
    }
    torch.manual_seed(3)
    draft = {"tuned": combined.tuned, "small": combined.small_combination}[who]
    options = {**OPTIONS, "max_new_tokens": 2, "do_sample": True, "top_k": 0, "num_assistant_tokens": 2}
    counts: dict[Any, int] = {}
    for start in range(0, draws, 4000):
        rows = ids.expand(min(4000, draws - start), -1)
        for pair in map(tuple, combined.generate(rows, **options, assistant_model=draft)[:, ids.shape[1] :].tolist()):
            counts[pair] = counts.get(pair, 0) + 1
    statistic, freedom = oracle.chi_square(counts, joint)
    assert statistic < freedom + 3.72 * math.sqrt(2 * freedom) + 5 and combined.speculation.tokens_per_round > 1


def test_drafts_of_the_small_combination_are_those_of_the_drafting_number() -> None:
    seen = []
    for drafting in (0.0, 1.0, 3.0):
        combined = model(Entropy(most=2.0, drafting=drafting))
        rows = combined.generate(**BATCH, **OPTIONS, assistant_model=combined.small_combination, num_assistant_tokens=4)
        seen.append((combined.speculation.tokens_per_round, rows.tolist()))
    assert len({str(rows) for _, rows in seen}) == 1  # the number changes how much is kept, and nothing else
    assert len({kept for kept, _ in seen}) > 1


def test_drafts_of_a_small_recipe_with_phases_have_the_drafting_number() -> None:
    kept = []
    for drafting in (1.0, 30.0):
        rule = type(RULES["js"][0])("tuned", "reference", most=1.5, drafting=drafting)
        combined = thinking.model(
            Combination.emulate(alpha={"think": rule, "plan": rule, "answer": rule}, phases=[THINK, PLAN])
        )
        combined.generate(**BATCH, **OPTIONS, assistant_model=combined.small_combination, num_assistant_tokens=4)
        kept.append(combined.speculation.tokens_per_round)
    assert kept[0] != kept[1]
