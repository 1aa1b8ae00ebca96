"""Recipes of members in units: schedules, phases, rules, adapters, grammars, samples of drafts; and what is kept while texts grow."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import pytest
import ruling
import thinking
import torch
from oracle import chi_square
from unit_members import (
    PAIRS,
    TEXTS,
    cutters_of,
    enumerated,
    generated,
    ids_of,
    members,
    model,
    models_of,
    tokenizer,
    without_padding,
)

from hf_eft import Combination, EFTForCausalLM, Phase
from hf_eft.grammar import GrammarLogitsProcessor, Grammars
from hf_eft.spelling.texts import Context, State
from hf_eft.units import common_units, unit_tokenizer

ALL: dict[str, Any] = {"covers": None, "threshold": 0.0}
WHOLE, SOME = "bytes: base in small", "pieces: shared"
STEPS = 4


def combined(pair: str, recipe: Combination | None = None, **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(**members(pair, **options), combination=recipe)


def written(pair: str, row: list[int], text: str) -> list[int]:
    """What was written behind a prompt."""
    return without_padding(pair, row)[len(ids_of(pair, text)["input_ids"][0]) :]


def weighed(p: dict[str, torch.Tensor], alpha: float) -> torch.Tensor:
    return p["base"].log() + alpha * (p["tuned"].log() - p["reference"].log())


@pytest.mark.parametrize("pair", [WHOLE, SOME])
def test_schedules_are_of_positions(pair: str) -> None:
    schedule = [2.0, -1.0, 0.5]
    rows = generated(combined(pair, Combination.emulate(alpha=schedule), **ALL), pair, max_new_tokens=STEPS)
    oracle = enumerated(pair)
    differs = False
    for i, text in enumerate(TEXTS):
        steps = itertools.chain(schedule, itertools.repeat(schedule[-1]))
        assert written(pair, rows[i], text) == oracle.greedy(i, STEPS, lambda p, at=steps: weighed(p, next(at)))
        differs |= written(pair, rows[i], text) != oracle.greedy(i, STEPS, lambda p: weighed(p, 2.0))
    assert differs


# (A base that is read as it is has special tokens in its distribution, which a rule sees and the enumeration does not.)
@pytest.mark.parametrize("which", ["kl", "entropy", "gate"])
def test_rules_are_those_of_the_enumeration(which: str, pair: str = SOME) -> None:
    rule, says = ruling.RULES[which]
    whole = combined(pair, Combination.emulate(alpha=rule), **ALL)
    rows = generated(whole, pair, max_new_tokens=STEPS)
    oracle = enumerated(pair)
    for i, text in enumerate(TEXTS):
        expected = oracle.greedy(i, STEPS, lambda p: weighed(p, says({name: values.tolist() for name, values in p.items()})))
        assert written(pair, rows[i], text) == expected
    drafted = generated(whole, pair, max_new_tokens=STEPS, assistant_model=whole.small_combination, num_assistant_tokens=3)
    assert drafted == rows


@pytest.mark.parametrize("pair", [WHOLE, SOME])
def test_each_unit_is_weighed_by_its_phase(pair: str) -> None:
    oracle = enumerated(pair)
    a, b = (oracle.ids[list(common_units(cutters_of(pair)).texts).index(text)] for text in (b"a", b"b"))
    first = int(ids_of(pair, TEXTS[0])["input_ids"][0, -1])  # so that a prompt ends where a phase begins
    phases = [Phase("think", [first], [b, a], budget=1), Phase("plan", [a, a], [b], budget=None)]
    strengths = {"think": 1.6, "plan": -0.7, "answer": 0.4}
    recipe = Combination.emulate(alpha=strengths, phases=phases)
    rows = generated(combined(pair, recipe, **ALL), pair, max_new_tokens=STEPS)
    stood = set()
    for i, text in enumerate(TEXTS):
        prompt = ids_of(pair, text)["input_ids"][0].tolist()
        expected: list[int] = []
        while len(expected) < STEPS:
            phase, forced = thinking.standing([*prompt, *expected], phases)
            stood.add((phase, forced is not None))
            said = oracle.says(i, [oracle.ids.index(k) for k in expected])
            best = oracle.ids[int(weighed(said, strengths[phase]).argmax())] if forced is None else forced
            expected.append(best)
            if best == oracle.ids[-1]:
                break
        assert written(pair, rows[i], text) == expected
    assert {("think", True), ("think", False)} <= stood


def test_markers_that_are_texts_are_written_in_units() -> None:
    """As tokens of the base they would be `bb`, which is never written."""
    pair = "bytes: shared"
    models, cutters = models_of(pair), cutters_of(pair)
    b, a = (cutters["base"].get_vocab()[letter] for letter in "ba")
    options: dict[str, Any] = {"max_new_tokens": 14, "eos_token_id": None, "do_sample": True}
    made = []
    for phase in (Phase("think", [b, b], [a, a], budget=2), Phase("think", "bb", "aa", budget=2)):
        recipe = Combination.emulate(alpha={"think": 1.5, "answer": 0.5}, phases=[phase])
        whole = EFTForCausalLM.from_models(
            models["base"], tuned=models["tuned"], reference=models["reference"], combination=recipe, vocabulary="tokens",
            tokenizers=cutters,
        )  # fmt: skip
        made.append(generated(whole, pair, **options))
    assert any(row[k : k + 2] == [a, a] for row in made[0] for k in range(3, 17))
    assert made[1] == made[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_adapters_as_members() -> None:
    peft = pytest.importorskip("peft")
    base, small, _ = PAIRS[SOME]
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model.__wrapped__(small, 1), config).eval()
    cutters = {"base": tokenizer(base), **dict.fromkeys(("tuned", "reference"), tokenizer(small))}
    both = EFTForCausalLM.from_models(model(base, 0), tuned=adapted, tokenizers=cutters, vocabulary="tokens")
    assert list(both.members) == ["base", "tuned", "reference"]
    own = ids_of(SOME, *TEXTS)
    tuned, reference = (both.members[name](**own, logits_to_keep=1).logits for name in ("tuned", "reference"))
    assert not torch.allclose(tuned.exp(), reference.exp(), atol=1e-3)
    without = members(SOME)["tuned"](**own, logits_to_keep=1).logits
    torch.testing.assert_close(reference.exp(), without.exp(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("way", ["greedy", "drafts"])
def test_answers_keep_to_a_grammar(way: str) -> None:
    """A grammar is one of units: the tokens that it is made for are the unit tokenizer's."""
    pytest.importorskip("llguidance")
    whole = combined(SOME)
    speaker = unit_tokenizer(cutters_of(SOME)["base"], common_units(cutters_of(SOME)))
    grammar = Grammars(speaker).regex("(ba|abb){2,3}")
    options: dict[str, Any] = {} if way == "greedy" else {"assistant_model": whole.tuned, "num_assistant_tokens": 3}
    inputs = ids_of(SOME, *TEXTS)["input_ids"]
    rows = generated(whole, SOME, max_new_tokens=12, logits_processor=[GrammarLogitsProcessor(grammar, inputs)], **options)
    for row, text in zip(rows, TEXTS, strict=True):
        answer = speaker.decode(written(SOME, row, text), skip_special_tokens=True)
        assert answer.replace("abb", "").replace("ba", "") == "" and len(answer) >= 4, answer


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, rounds", [(128, 8), pytest.param(256, 60, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("pair", [WHOLE, SOME])
def test_samples_of_drafts_are_of_the_combination(pair: str, rows: int, rounds: int) -> None:
    """In the coupling that rejects: two units behind a prompt, against the enumeration."""
    whole, oracle = combined(pair, **ALL), enumerated(pair)
    prompt = ids_of(pair, TEXTS[0])["input_ids"]
    torch.manual_seed(12)
    counts: dict[Any, int] = {}
    for _ in range(rounds):
        ids = prompt.repeat(rows, 1)
        made = whole.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=True, top_k=0,
            assistant_model=whole.tuned, num_assistant_tokens=1,
        )  # fmt: skip
        for row in made[:, prompt.shape[1] :].tolist():
            key = tuple(row[: row.index(oracle.ids[-1]) + 1] if oracle.ids[-1] in row else row)
            counts[key] = counts.get(key, 0) + 1
    expected: dict[Any, float] = {}
    for first, p in enumerate(weighed(oracle.says(0, []), 1.0).softmax(-1).tolist()):
        if first == len(oracle.ids) - 1:
            expected[oracle.ids[first],] = p
            continue
        for second, q in enumerate(weighed(oracle.says(0, [first]), 1.0).softmax(-1).tolist()):
            expected[oracle.ids[first], oracle.ids[second]] = p * q
    assert sum(expected.values()) == pytest.approx(1) and counts.keys() <= expected.keys()
    statistic, freedom = chi_square(counts, expected)
    assert (statistic - freedom) / (2 * freedom) ** 0.5 < 4


# What is kept -----------------------------------------------------------------------------------------------------------


def kept() -> dict[str, int]:
    """How many contexts and states there are, and how many numbers their tables and caches hold."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each) in (Context, State)]
    tables = {id(each.tables): each.tables.numel() for each in found if isinstance(each, Context)}
    return {"objects": len(found), "numbers": sum(tables.values())}


def test_what_is_kept_does_not_grow_with_a_text() -> None:
    """But for the members' own caches."""
    pair = "bytes: shared"
    whole = combined(pair)
    counts: dict[int, dict[str, int]] = {}

    def look(ids: torch.Tensor, _: Any) -> torch.Tensor:
        if (length := ids.shape[1]) in (150, 300):
            counts[length] = kept()
        return torch.zeros(len(ids), dtype=torch.bool)

    generated(whole, pair, max_new_tokens=300, eos_token_id=None, stopping_criteria=[look])
    assert counts[300]["objects"] <= 1.3 * counts[150]["objects"] + 20
    assert counts[300]["numbers"] <= 1.3 * counts[150]["numbers"] + 200
