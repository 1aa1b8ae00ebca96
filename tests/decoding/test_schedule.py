"""How many tokens are drafted: what the automatic schedule finds, and what it loses, on costs that are made up."""

from __future__ import annotations

import random
import statistics

from hf_eft.decoding.speculative.schedule import Automatic, Fixed, Way, expected_tokens


def simulate(
    agreement: float, step: float, verify: float, slope: float = 0.02, rounds: int = 300, jump: float = 0.0, seed: int = 4
) -> tuple[float, list[int]]:
    """
    Tokens per second of the automatic schedule against those of plain decoding, on made-up costs; `jump` is what any second position
    adds to verifying one, as it does where a processor multiplies a single row faster than two.
    """
    rows = 1
    rng = random.Random(seed)
    schedule, tokens, seconds, blocks = Automatic(), 0, 0.0, []
    for _ in range(rounds):
        _, block = schedule.next(rows)
        blocks.append(block)
        kept = [next((i for i in range(block) if rng.random() > agreement), block) for _ in range(rows)]
        whole = any(n == block for n in kept)
        agreed = [float(i < n) for n in kept for i in range(min(n + 1, block))] if block else [float(rng.random() < agreement)]
        verifying = verify * (1 + jump * (block > 0) + slope * block) * rng.uniform(0.9, 1.1)
        schedule.record(0, block, kept, [agreed], step * rng.uniform(0.9, 1.1), verifying)
        tokens += sum(kept) + rows
        seconds += (block + whole) * step + verifying
    return (tokens / rows / seconds) * (step + verify), blocks


def test_automatic_finds_the_best_block() -> None:
    for agreement, step, verify in ((0.91, 1.0, 5.0), (0.94, 1.0, 10.0), (0.7, 1.0, 8.0)):
        got, _ = simulate(agreement, step, verify)
        rates = [
            expected_tokens(agreement, k) / ((k + agreement**k) * step + verify * (1 + 0.02 * k)) * (step + verify)
            for k in range(17)
        ]
        assert got > 0.93 * max(rates)


def test_automatic_leaves_speculation_that_cannot_win() -> None:
    got, blocks = simulate(0.1, 1.0, 1.2, slope=0.5)
    assert got > 0.95
    assert blocks[-100:].count(0) > 90


def test_automatic_loses_little_in_a_short_text_where_nothing_wins() -> None:
    short = [simulate(0.4, 1.0, 2.6, slope=0.012, rounds=40, jump=0.5, seed=seed)[0] for seed in range(200)]
    assert statistics.fmean(short) > 0.97


def two(
    agreements: tuple[float, float], passes: tuple[tuple[float, float], ...] = ((1, 2), (2, 1)), hiccup: float = 1.0
) -> tuple[list[int], float]:
    """
    Who drafted in each of 200 rounds, and tokens per second, where a pass of a small member takes a second and the base six; `hiccup` is
    how many times longer the second drafter's first round took.
    """
    rng, schedule, who_drafted, tokens, seconds = random.Random(4), Automatic(ways=[Way(*p) for p in passes]), [], 0, 0.0
    for _ in range(200):
        who, block = schedule.next(1)
        who_drafted.append(who if block else -1)
        drafting, others = passes[who]
        slow = hiccup if who == 1 and who_drafted.count(1) == 1 else rng.uniform(0.95, 1.05)
        step, verifying = slow * drafting, slow * (6 + (others - 1)) * (1 + 0.02 * block)
        draws = [[rng.random() < a for _ in range(block or 1)] for a in agreements]
        kept = next((i for i in range(block) if not draws[who][i]), block)
        agreed = [[float(x) for x in row[: kept + 1]] for row in draws]
        bonus = kept == block
        schedule.record(who, block, [kept], agreed, step, verifying)
        tokens += kept + 1
        seconds += (block + bonus) * step + verifying
    return who_drafted, tokens / seconds


def test_the_better_drafter_drafts_whichever_was_asked() -> None:
    for passes in (((1, 2), (2, 1)), ((2, 1), (1, 2))):
        small = passes.index((2, 1))
        for of_small, of_tuned, better in ((0.88, 0.6, small), (0.9, 0.96, 1 - small)):
            agreements = (of_small, of_tuned) if small == 0 else (of_tuned, of_small)
            drafted, rate = two(agreements, passes)
            alone = two((agreements[better],) * 2, (passes[better],) * 2)[1]
            assert drafted.count(better) > 170 and rate > 0.93 * alone


def test_neither_drafts_where_none_pays() -> None:
    drafted, rate = two((0.02, 0.03))
    assert drafted[100:].count(-1) > 90 and rate > 0.93 / 8


def test_a_drafter_whose_passes_cost_more_than_it_could_gain_is_not_tried() -> None:
    assert 1 not in two((0.9, 0.9), ((1, 3), (4, 1)))[0]


def test_costs_of_a_drafter_that_has_not_drafted_lately_are_forgotten() -> None:
    drafted, _ = two((0.7, 0.95), hiccup=20.0)
    assert drafted[10:30].count(0) > 15 and drafted[60:].count(1) > 120


def test_fixed_schedules() -> None:
    constant, heuristic = Fixed(4, heuristic=False), Fixed(4, heuristic=True)
    for schedule in (constant, heuristic):
        schedule.record(0, 4, [4, 4], [], 0.0, 0.0)
    assert (constant.next(2), heuristic.next(2)) == ((0, 4), (0, 6))
    heuristic.record(0, 6, [6, 2], [], 0.0, 0.0)
    assert heuristic.next(2) == (0, 5)
