"""How what is drafted is coupled to what is sampled: "reject" keeps the distribution, "match" the noise of each row."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from elsewhere import put_elsewhere
from families import SEED, build, prompts
from oracle import chi_square
from random_cases import double

from hf_eft import EFTForCausalLM
from hf_eft.decoding.speculative import scoring
from hf_eft.decoding.speculative.coupling import Noise, accept_equal, accept_ratio
from hf_eft.decoding.speculative.schedule import Automatic

# The distribution -----------------------------------------------------------------------------------------------------

TINY, STEPS = 6, 3
ROWS = 640  # a call of so small a model takes little longer for many rows


def tiny_vocabulary() -> EFTForCausalLM:
    sizes = {"vocab_size": TINY, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "eos_token_id": None}
    # Of one seed whatever `SEED` is: how plainly a planted bias is seen is a matter of the distribution.
    members = [build("llama", seed - 1000 * SEED, **sizes) for seed in (0, 1, 2)]
    with torch.no_grad():
        for member in members:
            member.lm_head.weight.mul_(1.5)
    return EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2], alpha=0.7)


@torch.no_grad()
def exact(model: EFTForCausalLM, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of `STEPS` tokens, from one forward for each prefix."""
    probabilities = {(): 1.0}
    for _ in range(STEPS):
        prefixes = list(probabilities)
        logits = model(torch.tensor([[*prompt, *prefix] for prefix in prefixes])).logits[:, -1].double().softmax(-1)
        probabilities = {
            (*prefix, token): probabilities[prefix] * float(logits[i, token])
            for i, prefix in enumerate(prefixes)
            for token in range(TINY)
        }
    return probabilities


def excess(rows: int, samples: int, block: int | None, who: str = "tuned", patch: pytest.MonkeyPatch | None = None) -> float:
    """By how many standard deviations the worst chi-square, per position and of whole continuations, is above its mean."""
    model, prompt = tiny_vocabulary(), [3, 4]
    if patch is not None:
        put_elsewhere(patch, model.base)
    drafter = copy.deepcopy(model.tuned) if who == "outsider" else getattr(model, who)
    torch.manual_seed(12)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(samples // rows):
        ids = torch.tensor([prompt] * rows)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=True, top_k=0,
            assistant_model=drafter, **({} if block is None else {"num_assistant_tokens": block}),
        )  # fmt: skip
        for row in out[:, 2:].tolist():
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    joint = exact(model, prompt)
    worst = -float("inf")
    for position in [*range(STEPS), None]:
        c: dict[Any, int] = {}
        p: dict[Any, float] = {}
        for sequence in itertools.product(range(TINY), repeat=STEPS):
            key = sequence if position is None else sequence[position]
            c[key] = c.get(key, 0) + counts.get(sequence, 0)
            p[key] = p.get(key, 0.0) + joint[sequence]
        statistic, freedom = chi_square(c, p)
        worst = max(worst, (statistic - freedom) / (2 * freedom) ** 0.5)
    return worst


@pytest.mark.parametrize(
    "rows, samples",
    [
        (ROWS, ROWS * 70),
        pytest.param(4, 20_000, marks=pytest.mark.nightly),
        pytest.param(1, 20_000, marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("block", [1, 2])
def test_reject_samples_from_the_combination(rows: int, samples: int, block: int) -> None:
    assert excess(rows, samples, block) < 4


def test_reject_with_an_outsider_samples_from_the_combination() -> None:
    assert excess(ROWS, ROWS * 30, 2, who="outsider") < 4


def test_reject_with_the_small_combination_samples_from_the_combination() -> None:
    assert excess(ROWS, ROWS * 30, 2, who="small_combination") < 4


def test_reject_with_drafters_that_take_turns_samples_from_the_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [(0, 1), (1, 2), (1, 1), (0, 0)]
    monkeypatch.setattr(Automatic, "next", lambda schedule, rows: turns[schedule.rounds % len(turns)])
    assert excess(ROWS, ROWS * 30, None) < 4


@pytest.mark.nightly
@pytest.mark.parametrize("rows, samples", [(1, 20_000), (2, 30_000)])
def test_reject_with_blocks_drafted_ahead_samples_from_the_combination(
    rows: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert excess(rows, samples, 1, patch=monkeypatch) < 4


def test_a_planted_bias_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_kind(drafted: torch.Tensor, draft: torch.Tensor, target: torch.Tensor) -> Any:
        return accept_ratio(drafted, draft * 0.85, target)

    monkeypatch.setattr(scoring, "accept_ratio", too_kind)
    assert excess(ROWS, ROWS * 70, 2) > 8


def test_the_rejected_token_s_replacement_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_residual(drafted: torch.Tensor, draft: torch.Tensor, target: torch.Tensor) -> Any:
        kept, _ = accept_ratio(drafted, draft, target)
        at = kept.clamp(max=drafted.shape[1] - 1)
        return kept, torch.multinomial(target[torch.arange(len(kept)), at], 1).squeeze(1)

    monkeypatch.setattr(scoring, "accept_ratio", no_residual)
    assert excess(ROWS, ROWS * 70, 2) > 8


# The noise ------------------------------------------------------------------------------------------------------------


def test_noise_depends_on_seed_row_and_position_only() -> None:
    scores = torch.zeros(3, 50)
    noise = Noise(5)
    whole = [noise.pick(scores, [t, t + 1, t + 7]).tolist() for t in range(20)]
    assert whole == [Noise(5).pick(scores, [t, t + 1, t + 7]).tolist() for t in range(20)]
    alone = [noise.pick(scores[:1], [t]).item() for t in range(20)]
    assert alone == [step[0] for step in whole]
    by_row = Noise([11, 12, 13])
    swapped = Noise([13, 11, 12])
    assert [by_row.pick(scores, [t] * 3).tolist()[2] for t in range(9)] == [
        swapped.pick(scores, [t] * 3).tolist()[0] for t in range(9)
    ]
    assert len({Noise(seed).pick(scores[:1], [0]).item() for seed in range(40)}) > 10
    with pytest.raises(ValueError, match="one for each of the 3 rows, got 2"):
        Noise([1, 2]).check_rows(3)


def test_noise_samples_from_the_scores() -> None:
    p = torch.tensor([0.5, 0.3, 0.2])
    picks = torch.cat([Noise(3).pick(p.log().expand(200, 3), [t] * 200) for t in range(50)])
    counts = picks.bincount(minlength=3).double()
    statistic = float(((counts - 10_000 * p) ** 2 / (10_000 * p)).sum())
    assert statistic < 14  # 2 degrees of freedom: 1 in 1,000


def test_a_row_s_tokens_do_not_depend_on_its_batch() -> None:
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double("gpt2", 1), reference=double("gpt2", 2))
    inputs, options = prompts("left"), {"max_new_tokens": 10, "do_sample": True, "coupling": "match"}
    together = model.generate(**inputs, **options, seed=[7, 8, 9])
    for row, seed in enumerate([7, 8, 9]):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
        for how in ({}, {"assistant_model": model.tuned}):
            alone = model.generate(ids, **options, seed=[seed], **how)[0, ids.shape[1] :]
            length = len(alone)
            assert together[row, 9 : 9 + length].tolist() == alone.tolist()


def test_accept_equal() -> None:
    drafted = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    wanted = torch.tensor([[1, 2, 3, 9], [1, 5, 3, 9], [4, 2, 3, 9]])
    assert accept_equal(drafted, wanted).tolist() == [3, 1, 0]
