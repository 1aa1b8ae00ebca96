"""The automatic schedule's arithmetic, on numbers that are given: costs, their means, and the rate of a block."""

from __future__ import annotations

import pytest

from hf_eft.decoding.speculative.schedule import Automatic, Way


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({}, {1: 0.0, 4: 0.0}),
        ({1: 5.0}, {1: 5.0, 7: 5.0}),  # rounds without a draft alone: more positions are worth a try
        ({4: 8.0}, {1: 4.8, 4: 8.0, 2: 4.8 + 3.2 / 3, 6: 8.0 + 2 * 3.2 / 3}),  # one position is taken to cost 0.6 of the fewest
        ({1: 4.0, 4: 8.0, 8: 12.0}, {2: 4.0 + 4 / 3, 4: 8.0, 6: 10.0, 10: 14.0}),
        ({1: 4.0, 4: 8.0, 8: 6.0}, {6: 8.0, 10: 8.0}),  # never less than for fewer
    ],
    ids=str,
)
def test_verifying_costs_what_was_measured_or_lies_on_the_line(measured: dict[int, float], expected: dict[int, float]) -> None:
    way = Way()
    way.verify = {positions: seconds for positions, seconds in measured.items() if positions > 1}
    for positions, seconds in expected.items():
        assert way.looks(positions, measured.get(1)) == pytest.approx(seconds)


def test_what_is_measured_is_remembered_by_its_mean() -> None:
    schedule = Automatic()
    [way] = schedule.ways
    schedule.record(0, 2, [2], [[1.0, 1.0]], step=1.0, verifying=4.0)
    assert (way.step, way.verify) == (1.0, {3: 4.0})
    assert (way.agreed, way.seen) == (pytest.approx(2.85), pytest.approx(3.0))
    schedule.record(0, 2, [0], [[0.0]], step=2.0, verifying=3.0)
    assert way.step == pytest.approx(1.1) and way.verify == {3: pytest.approx(3.9)}
    schedule.record(0, 3, [0], [[0.0]], step=0.0, verifying=5.0)  # 0: unknown
    assert way.step == pytest.approx(1.1) and way.verify == {3: pytest.approx(3.9), 4: 5.0}
    schedule.record(0, 3, [0], [[0.0]], step=100.0, verifying=100.0)  # of a hiccup, three times the mean counts
    assert way.step == pytest.approx(0.9 * 1.1 + 0.1 * 3.3) and way.verify[4] == pytest.approx(0.9 * 5 + 0.1 * 15)
    assert (way.agreed, way.seen) == (pytest.approx(2.85), pytest.approx(6.0))
    schedule.record(
        0, 200, [100], [[1.0] * 100 + [0.0] * 134], step=1.0, verifying=4.0
    )  # 240 in all, of which 120 are remembered
    assert (way.agreed, way.seen) == (pytest.approx(102.85 / 2), pytest.approx(120.0))


def test_a_round_without_a_draft_takes_what_is_spent_on_it() -> None:
    schedule = Automatic()
    schedule.record(0, 0, [0], [[1.0]], step=0.0, verifying=4.0)  # all members in one step
    assert schedule.plain == 4.0 and schedule.ways[0].step is None
    schedule.record(0, 0, [0], [[1.0]], step=1.0, verifying=5.0)  # whoever would draft reads the token apart
    assert schedule.plain == pytest.approx(0.9 * 4 + 0.1 * 6)


def test_the_rate_of_a_block_is_tokens_by_seconds() -> None:
    schedule = Automatic()
    [way] = schedule.ways
    schedule.plain, way.last = 4.5, 1  # a round without a draft: a step of the drafter, and one position
    way.agreed, way.seen, way.step, way.verify = 1.0, 2.0, 0.5, {3: 6.0, 5: 8.0}
    assert schedule.rate(0, 1) == pytest.approx(1 / 4.5)
    # One row keeps both of two drafted tokens in a quarter of the rounds, one of two rows in 7 of 16.
    assert schedule.rate(2, 1) == pytest.approx(1.75 / (2.25 * 0.5 + 6.0))
    assert schedule.rate(2, 2) == pytest.approx(1.75 / ((2 + 7 / 16) * 0.5 + 6.0))


def test_the_smallest_block_is_taken_that_promises_nearly_the_best() -> None:
    assert Automatic().next(1) == (0, 3) and Automatic(most=2).next(1) == (0, 2)  # before anything is measured
    schedule = Automatic(most=8)
    [way] = schedule.ways
    schedule.rounds, way.last, way.agreed, way.seen, way.step = 1, 1, 99.0, 100.0, 0.1
    schedule.plain, way.verify = 10.1, {2: 10.0, 9: 10.0}
    assert schedule.next(1) == (0, 8)
    way.agreed = 50.0
    assert schedule.next(1) == (0, 4)  # 5 has the best rate, 1.969 / 10.503, and 4 has 1.938 / 10.406
    way.verify = {2: 20.0, 9: 160.0}
    assert schedule.next(1) == (0, 0)


def test_of_few_sizes_the_best() -> None:
    """Where each size is a graph of its own: powers of two, the first round's among them."""
    schedule = Automatic(12, few=True)
    assert schedule.sizes == [1, 2, 4, 8] and schedule.next(1) == (0, 2)
    taken = set()
    for agreement in (0.2, 0.6, 0.8, 0.9, 0.97):
        few, all_sizes = (Automatic(16, few=few) for few in (True, False))
        for each in (few, all_sizes):
            each.rounds = 1
            each.plain, each.ways[0].step, each.ways[0].verify = 1.2, 0.2, {3: 1.1, 9: 1.4}
            each.ways[0].agreed, each.ways[0].seen = agreement * 100, 100.0
        block = few.next(1)[1]
        taken.add(block)
        best = max(few.sizes, key=lambda size, s=few: s.rate(size, 1))
        assert block in (0, *few.sizes) and (block == 0 or few.rate(block, 1) >= 0.98 * few.rate(best, 1))
        assert all_sizes.rate(all_sizes.next(1)[1], 1) >= few.rate(block, 1) * 0.98
    assert len(taken) > 2
