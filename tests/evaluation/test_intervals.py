"""Intervals against independent computations; differences, gaps and warnings made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluations import made

from hf_eft.evaluation import Score, harness
from hf_eft.evaluation.intervals import Items, of_difference, of_gap, of_value


def test_the_warning_knows_the_direction() -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(1, 0.3, 50).tolist(), rng.normal(2, 0.3, 50).tolist()
    assert len(made({"tuned": good, "combined": bad}, higher=False).warnings()) == 1
    assert made({"tuned": good, "combined": bad}, higher=True).warnings() == []
    assert made({"tuned": bad, "combined": good}, higher=False).warnings() == []
    assert made({"tuned": good, "combined": good}).warnings() == []
    assert made({"base": bad, "reference": bad, "tuned_large": bad, "combined": good}).warnings() == []
    several = made({"helpful": bad, "harmless": good, "combined": good})
    assert [("helpful" in warning) for warning in several.warnings()] == [True]


def score_by_likelihood(won: int, lost: int, n: int, d: float) -> float:
    """Tango's statistic with the restricted maximum of the likelihood found by search, not by his formula."""
    shares = np.linspace(max(0.0, -d), (1 - d) / 2 + 1e-15, 400_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        pieces = ((won, shares + d), (lost, shares), (n - won - lost, 1 - 2 * shares - d))
        likelihood = sum(count * np.log(np.clip(share, 0, None)) if count else 0 * share for count, share in pieces)
    best = shares[np.nanargmax(likelihood)]
    return float((won - lost - n * d) / math.sqrt(n * (2 * best + d * (1 - d))))


@pytest.mark.parametrize(("won", "lost", "n"), [(9, 3, 40), (0, 7, 24), (1, 1, 30), (12, 20, 60), (30, 0, 60)])
def test_the_interval_of_a_paired_difference_of_shares(won: int, lost: int, n: int) -> None:
    first = [1.0] * won + [0.0] * lost + [1.0] * (n - won - lost)
    second = [0.0] * won + [1.0] * lost + [1.0] * (n - won - lost)
    found = of_difference(Items(first), Items(second))
    assert found.value == pytest.approx((won - lost) / n) and found.method == "tango" and found.items == n
    assert score_by_likelihood(won, lost, n, found.low) == pytest.approx(1.959964, abs=2e-3)
    assert score_by_likelihood(won, lost, n, found.high) == pytest.approx(-1.959964, abs=2e-3)
    turned = of_difference(Items(second), Items(first))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize(("won", "lost", "low", "high"), [(0, 0, -0.161, 0.161), (20, 0, 0.678, 1.0), (0, 20, -1.0, -0.678)])
def test_no_interval_is_a_point(won: int, lost: int, low: float, high: float) -> None:
    """20 items of which none differ leave z^2 / (n + z^2); those of which all differ leave 1 - (n - z^2) / (n + z^2)."""
    n = 20
    found = of_difference(Items([1.0] * won + [0.0] * (n - won)), Items([1.0] * lost + [0.0] * (n - lost)))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)


def test_the_bootstrap_is_paired_and_close_to_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 400)  # what both systems share
    first, second = hard + rng.normal(0.5, 1, 400), hard + rng.normal(0, 1, 400)
    found = of_difference(Items(first.tolist()), Items(second.tolist()))
    error = (first - second).std(ddof=1) / 20
    assert found.method == "bootstrap"
    assert found.low == pytest.approx((first - second).mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx((first - second).mean() + 1.96 * error, abs=0.15 * error)
    again = of_difference(Items(first.tolist()), Items(second.tolist()))
    assert again == found
    assert of_value(Items(first.tolist())).high - of_value(Items(first.tolist())).low > 5 * (found.high - found.low)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("mean", -1.6),
        ("perplexity", math.exp(1.6)),
        ("weighted_perplexity", math.exp(8 / 6)),
        ("bits_per_byte", 8 / 6 / math.log(2)),
    ],
)
def test_aggregations_are_lm_eval_s(aggregation: str, expected: float) -> None:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    scores, words = [-1.0, -2.0, -1.5, -2.5, -1.0], [1.0, 2.0, 1.0, 1.0, 1.0]
    weighted = aggregation not in ("mean", "perplexity")
    items = Items(scores, words if weighted else None, aggregation)
    rows = list(zip(scores, words, strict=True)) if weighted else scores
    assert items.aggregate() == pytest.approx(expected)
    assert AGGREGATION_REGISTRY[aggregation](rows) == pytest.approx(expected)
    found = of_value(items)
    assert found.value == pytest.approx(expected) and found.low < expected < found.high


def test_gap_recovered() -> None:
    rng = np.random.default_rng(2)
    noise = [rng.normal(0, 0.1, 200) for _ in range(3)]
    floor, ceiling, own = ((level + each).tolist() for level, each in zip((1.0, 3.0, 1.0 + 0.67 * 2), noise, strict=True))
    found = made({"tuned": floor, "combined": own, "tuned_large": ceiling}).gap_recovered("t", "m")
    assert found.value == pytest.approx(0.67, abs=0.02) and found.low < 0.67 < found.high and found.high - found.low < 0.05
    assert of_gap(Items(floor), Items(floor), Items(ceiling)).value == 0
    assert of_gap(Items(ceiling), Items(floor), Items(ceiling)).value == 1
    likelihoods = {"tuned": [-x for x in ceiling], "combined": [-x for x in own], "tuned_large": [-x for x in floor]}
    lower = made(likelihoods, higher=False, aggregation="perplexity").gap_recovered("t", "m")  # the same where lower is better
    value = {name: math.exp(-sum(scores) / 200) for name, scores in likelihoods.items()}
    assert lower.value == pytest.approx((value["combined"] - value["tuned"]) / (value["tuned_large"] - value["tuned"]))
    with pytest.raises(ValueError, match="no gap to recover"):
        of_gap(Items(own), Items(floor), Items(floor))
    with pytest.raises(ValueError, match=r"`floor`.*'a', 'b'"):
        made({"a": floor, "b": own, "combined": own, "tuned_large": ceiling}).gap_recovered("t", "m")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 items, aggregated by 'mean', got 2"):
        of_difference(Items([1, 0, 1]), Items([1, 0]))
    with pytest.raises(ValueError, match="at least 2 items"):
        of_value(Items([1.0]))
    evaluation = made({"tuned": [1, 0], "combined": [1, 0]})
    with pytest.raises(KeyError, match="'base' was not measured"):
        evaluation.compare("combined", "base", "t", "m")
    evaluation.scores["t"]["tuned"]["m"] = Score(0.5, 2, True, None)
    with pytest.raises(ValueError, match="of all items at once"):
        evaluation.compare("combined", "tuned", "t", "m")
    assert evaluation.warnings() == []


def test_only_scores_that_make_up_the_value_are_items() -> None:
    assert harness._items([1.0, 0.0], "mean", 0.5) == Items([1.0, 0.0])
    assert harness._items([(-2.0, 4), (-1.0, 2)], "bits_per_byte", 0.5 / math.log(2)).weights == [4.0, 2.0]
    assert harness._items([1.0, 0.0], "mean", 0.25) is None  # some other function that is called mean
    assert harness._items([(1, 0), (0, 0)], "f1", 0.5) is None
    assert harness._items([("a", "b", "c")], "mean", 0.5) is None
