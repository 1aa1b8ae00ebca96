"""Drafts across the borders of phases: every position of a block has its own, and what is rejected leaves no trace."""

from __future__ import annotations

import itertools
from typing import Any

import families
import pytest
import thinking
import torch
from elsewhere import put_elsewhere
from families import PAD, SEED, build
from oracle import chi_square
from random_cases import double
from thinking import PLAN, RECIPE, THINK, model, prompts

from hf_eft import Combination, EFTForCausalLM, Phase
from hf_eft.decoding.phases import Phases
from hf_eft.recipe.phases import Markers

STEPS = 24


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.nightly)], ids=["some", "all"])
@pytest.mark.parametrize("drafts", ["", pytest.param("tuned", marks=pytest.mark.nightly), "lookup"])
def test_64_rows_are_64_single_runs(drafts: str, every: int) -> None:
    """Two seeds a prompt, so that rows come to the borders at different positions of a block."""
    inputs, combined, seeds = prompts(64), model(), list(range(200, 264))
    options: dict[str, Any] = {
        "max_new_tokens": STEPS,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "do_sample": True,
        "coupling": "match",
    }
    how: dict[str, Any] = {
        "tuned": {"assistant_model": combined.tuned, "num_assistant_tokens": 4},
        "lookup": {"prompt_lookup_num_tokens": 3},
    }
    together = combined.generate(**inputs, **options, **how.get(drafts, {}), seed=seeds)[:, 9:].tolist()
    borders = 0
    for row in range(0, 64, every):
        ids = inputs["input_ids"][row : row + 1, inputs["attention_mask"][row].bool()]
        alone = combined.generate(ids, **options, seed=[seeds[row]])[0].tolist()
        assert together[row] == alone[ids.shape[1] :], row
        phases = [thinking.standing(alone[:n]) for n in range(ids.shape[1], len(alone))]
        borders += sum(a[0] != b[0] for a, b in itertools.pairwise(phases))
        for (_, must), token in zip(phases, alone[ids.shape[1] :], strict=True):
            assert must in (None, token)
    assert borders > (80 if every == 1 else 5)


TINY = 6
MARKS = [Phase("think", [2], [3, 4], budget=2)]


def tiny() -> EFTForCausalLM:
    sizes = {"vocab_size": TINY, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "eos_token_id": None}
    members = [build("llama", seed - 1000 * SEED, **sizes) for seed in (0, 1, 2)]  # of one seed whatever `SEED` is
    recipe = Combination.emulate(alpha={"think": 1.5, "answer": -0.5}, phases=MARKS)
    return EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2], combination=recipe)


@torch.no_grad()
@pytest.mark.parametrize("who", ["tuned", pytest.param("small_combination", marks=pytest.mark.nightly)])
def test_reject_samples_from_the_phases_own_distributions(who: str) -> None:
    combined, prompt, steps = tiny(), [3, 5, 2], 3
    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(steps):
        found: dict[tuple[int, ...], float] = {}
        for said, p in exact.items():
            row = [*prompt, *said]
            phase, must = thinking.standing(row, MARKS)
            a = {"think": 1.5, "answer": -0.5}[phase]
            logits = {name: m(torch.tensor([row])).logits[0, -1].double() for name, m in combined.members.items()}
            weights = (logits["base"] + a * (logits["tuned"] - logits["reference"])).softmax(-1)
            for token in range(TINY) if must is None else [must]:
                found[(*said, token)] = p * (float(weights[token]) if must is None else 1.0)
        exact = found
    torch.manual_seed(3)
    counts: dict[tuple[int, ...], int] = {}
    ids = torch.tensor([prompt] * 640)  # many rows a call: so small a model takes little longer for them
    for _ in range(30):
        out = combined.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=True, top_k=0, pad_token_id=0,
            assistant_model=getattr(combined, who), num_assistant_tokens=2,
        )  # fmt: skip
        for row in out[:, 3:].tolist():
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert set(counts) <= set(exact)  # after two tokens of thought, it ends
    statistic, freedom = chi_square(counts, exact)
    assert statistic - freedom < 4 * (2 * freedom) ** 0.5


def test_drafts_on_static_caches() -> None:
    """Of members with more tokens: reading where a row ends is tried with some."""
    members = [double(*which) for which in (("llama", 0), ("qwen3", 1), ("qwen3", 2))]
    recipe = Combination.emulate(alpha={"think": 1.2, "answer": 0.3}, phases=[Phase("think", [10], [11, 12], budget=4)])
    combined = EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2], combination=recipe)
    inputs: dict[str, Any] = families.prompts("left")
    inputs["input_ids"][0, -1], inputs["input_ids"][1, -2] = 10, 10
    inputs |= {"max_new_tokens": 12, "eos_token_id": None}
    plain = combined.generate(**inputs)
    assert "11, 12" in str(plain[0, 9:15].tolist())
    how: dict[str, Any] = {"assistant_model": combined.tuned, "num_assistant_tokens": 3, "cache_implementation": "static"}
    assert combined.generate(**inputs, **how, disable_compile=True).tolist() == plain.tolist()


def test_rows_that_are_permuted_rolled_back_or_replaced_are_found_by_their_tokens() -> None:
    generator = torch.Generator().manual_seed(2)
    phases, ids = Phases(Markers([THINK, PLAN])), torch.randint(1, 8, (5, 6), generator=generator)

    def check(count: int) -> None:
        states = phases.after(ids, None, count)
        for row, found in zip(ids.tolist(), states, strict=True):
            for state, n in zip(found, range(len(row) - count + 1, len(row) + 1), strict=True):
                assert phases.markers.names[state.phase] == thinking.standing(row[:n])[0]

    check(6)
    for step in range(120):
        if step % 3 == 0:
            ids = ids[torch.randint(0, len(ids), (5,), generator=generator)]
        if step % 5 == 0:
            ids = ids[:, :-2]
        if step % 31 == 0:
            ids = ids.clone()
            ids[0, 0] = 5
        new = torch.randint(1, 8, (len(ids), int(torch.randint(1, 5, (1,), generator=generator))), generator=generator)
        ids = torch.cat([ids, new], dim=1)
        check(new.shape[1])


def test_a_token_more_costs_as_much_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: what was read is not read again, beams or not, and with drafts each token is looked at a few times at most."""
    looked = 0
    after = Markers.after

    def counted(self: Markers, *args: Any) -> Any:
        nonlocal looked
        looked += 1
        return after(self, *args)

    monkeypatch.setattr(Markers, "after", counted)
    combined = model(RECIPE)
    inputs: dict[str, Any] = {**prompts(2), "eos_token_id": None, "pad_token_id": PAD, "max_new_tokens": 60}
    for how, most in (({}, 2), ({"num_beams": 3}, 6), ({"assistant_model": combined.tuned, "num_assistant_tokens": 3}, 16)):
        looked = 0
        combined.generate(**inputs, **how)
        assert looked <= most * 2 * 70, how


def test_a_block_that_is_drafted_ahead_has_phases_too(monkeypatch: pytest.MonkeyPatch) -> None:
    combined, inputs = model(base=build("llama", 9, vocab_size=thinking.TOKENS).double()), prompts(8)
    options: dict[str, Any] = {**inputs, "max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": PAD}
    plain = combined.generate(**options)
    put_elsewhere(monkeypatch, combined.members["base"])
    assert combined.generate(**options, assistant_model=combined.tuned, num_assistant_tokens=2).tolist() == plain.tolist()
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    options |= one
    assert combined.generate(**options, assistant_model=combined.tuned, num_assistant_tokens=1).tolist() == plain[:1].tolist()
    assert combined.speculation.ahead
