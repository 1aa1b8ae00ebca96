"""How many tokens are drafted: what the automatic schedule finds, and what it loses, on costs that are made up."""

from __future__ import annotations

import random
import statistics

from hf_eft.decoding.speculative.schedule import Automatic, Fixed, expected_tokens


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


def test_fixed_schedules() -> None:
    constant, heuristic = Fixed(4, heuristic=False), Fixed(4, heuristic=True)
    for schedule in (constant, heuristic):
        schedule.record(0, 4, [4, 4], [], 0.0, 0.0)
    assert (constant.next(2), heuristic.next(2)) == ((0, 4), (0, 6))
    heuristic.record(0, 6, [6, 2], [], 0.0, 0.0)
    assert heuristic.next(2) == (0, 5)
