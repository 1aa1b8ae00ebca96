"""
What is known about a score measured on some items: of one system, of the difference of two, of the gap that is recovered.

Systems are compared over the same items, so that what makes an item easy or hard for all of them drops out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES = 10_000  # the ends of a 95 % interval move by about 1 % of its width from one seed to another

# A score is a function of sum(score) / sum(weight); by the names that lm-evaluation-harness gives its aggregations.
AGGREGATIONS: dict[str, Callable[[Any], Any]] = {
    "mean": lambda ratio: ratio,
    "perplexity": lambda ratio: np.exp(-ratio),
    "weighted_perplexity": lambda ratio: np.exp(-ratio),
    "bits_per_byte": lambda ratio: -ratio / math.log(2),
}


@dataclass(frozen=True)
class Interval:
    """
    A figure and where it lies with a probability of `level`.

    Args:
        value (`float`): What was measured.
        low (`float`): The lower end.
        high (`float`): The upper end.
        items (`int`): How many items it was measured on.
        method (`str`): `"wilson"`, `"tango"` (score intervals of a share and of a paired difference of shares) or `"bootstrap"`.
        level (`float`, *optional*, defaults to 0.95): The probability.
    """

    value: float
    low: float
    high: float
    items: int
    method: str
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Items:
    """
    What a system scored on each item, and how the items make up its score.

    Args:
        scores (`Sequence[float]`): A score, or a log-likelihood, for each item.
        weights (`Sequence[float]`, *optional*): How much each item counts, in words or bytes; 1 if left out.
        aggregation (`str`, *optional*, defaults to `"mean"`): One of `AGGREGATIONS`.
    """

    scores: Sequence[float]
    weights: Sequence[float] | None = None
    aggregation: str = "mean"

    @property
    def is_share(self) -> bool:
        """Whether every item is right or wrong."""
        return self.aggregation == "mean" and self.weights is None and set(self.scores) <= {0.0, 1.0}

    @property
    def columns(self) -> tuple[Any, Any]:
        """Scores and weights as arrays, of shape `(items,)`."""
        scores = np.asarray(self.scores, dtype=float)
        return scores, np.ones_like(scores) if self.weights is None else np.asarray(self.weights, dtype=float)

    def aggregate(self, scores: Any = None, weights: Any = None, axis: int = -1) -> Any:
        """The score over an axis of these arrays; over the items if there are none. A likelihood of 0 makes a perplexity infinite."""
        if scores is None or weights is None:
            scores, weights = self.columns
        with np.errstate(over="ignore"):
            return AGGREGATIONS[self.aggregation](scores.sum(axis) / weights.sum(axis))


def of_value(items: Items, level: float = 0.95, seed: int = 0) -> Interval:
    """
    The interval of one system's score: Wilson's for a share, a percentile bootstrap over the items for anything else.

    ```python
    >>> from hf_eft.evaluation.intervals import Items, of_value

    >>> interval = of_value(Items([1.0] * 9 + [0.0]))
    >>> print(f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]")
    0.90 [0.60, 0.98]

    ```
    """
    _check(items)
    if not items.is_share:
        return _bootstrap([items], lambda score: score, level, seed)
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    right, n = int(sum(items.scores)), len(items.scores)
    low, high = binomtest(right, n).proportion_ci(level, method="wilson")
    return Interval(right / n, float(low), float(high), n, "wilson", level)


def of_difference(first: Items, second: Items, level: float = 0.95, seed: int = 0) -> Interval:
    """
    The interval of `first - second` over the same items: Tango's score interval for shares, a paired percentile bootstrap for anything
    else. Tango's has a width even where both systems agree on every item, as it should.

    Raises:
        `ValueError`: If the two were not measured on as many items, or aggregate them in different ways.
    """
    _check(first, second)
    if not (first.is_share and second.is_share):
        return _bootstrap([first, second], _difference, level, seed)
    pairs = list(zip(first.scores, second.scores, strict=True))
    won, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    low, high = _tango(won, lost, len(pairs), level)
    return Interval((won - lost) / len(pairs), low, high, len(pairs), "tango", level)


def of_gap(system: Items, floor: Items, ceiling: Items, level: float = 0.95, seed: int = 0) -> Interval:
    """
    The share of the gap between `floor` and `ceiling` that a system recovers, `(system - floor) / (ceiling - floor)`: 0 is the floor, 1
    the ceiling, as in the EFT paper. Its interval is a paired percentile bootstrap over the items.

    Raises:
        `ValueError`: If there is no gap: the interval of `ceiling - floor` holds 0.
    """
    _check(system, floor, ceiling)
    gap = of_difference(ceiling, floor, level, seed)
    if not gap.excludes_zero:
        raise ValueError(
            f"There is no gap to recover: the ceiling is {gap.value:+.4g} from the floor over {gap.items} items, an interval of "
            f"[{gap.low:.4g}, {gap.high:.4g}]. Measure more items, or a task where the two differ."
        )

    def recovered(a: Any, b: Any, c: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):  # a few resamples may have no gap: they count as beyond any end
            return np.nan_to_num((a - b) / (c - b), nan=np.inf, posinf=np.inf, neginf=-np.inf)

    return _bootstrap([system, floor, ceiling], recovered, level, seed)


def _difference(a: Any, b: Any) -> Any:
    with np.errstate(invalid="ignore"):  # both infinite: unknown
        return a - b


def _check(*systems: Items) -> None:
    first = systems[0]
    for items in systems:
        if len(items.scores) != len(first.scores) or items.aggregation != first.aggregation:
            raise ValueError(
                f"Only scores over the same items can be compared: expected {len(first.scores)} items, aggregated by "
                f"{first.aggregation!r}, got {len(items.scores)} and {items.aggregation!r}."
            )
    if len(first.scores) < 2:
        raise ValueError(f"An interval needs at least 2 items, got {len(first.scores)}.")


def _bootstrap(systems: Sequence[Items], statistic: Callable[..., Any], level: float, seed: int) -> Interval:
    """Items are drawn with replacement, the same ones for every system."""
    from scipy.stats import bootstrap

    def of_resample(*columns: Any, axis: int = -1) -> Any:
        return statistic(*(each.aggregate(columns[2 * i], columns[2 * i + 1], axis) for i, each in enumerate(systems)))

    columns = [column for each in systems for column in each.columns]
    n = len(systems[0].scores)
    value = float(of_resample(*columns))
    if not math.isfinite(value):  # an item of probability 0: so is every sample that holds it
        return Interval(value, value, value, n, "bootstrap", level)
    with np.errstate(invalid="ignore"):  # scipy also takes a standard error, which infinite resamples have none of
        found = bootstrap(
            columns, of_resample, paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=level, method="percentile",
            batch=max(1, 2_000_000 // n), rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return Interval(value, float(found.low), float(found.high), n, "bootstrap", level)


def _tango(won: int, lost: int, n: int, level: float) -> tuple[float, float]:
    """
    The differences `d` of two paired shares that the data do not reject: those where `won - lost - n d`, divided by its standard
    deviation under `d`, is within the normal quantile (Tango, Statistics in Medicine 17, 1998).
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    quantile = NormalDist().inv_cdf(0.5 + level / 2)

    def beyond(d: float) -> float:
        # The likeliest share of items that are lost, if the difference is d: the root of a quadratic.
        b = (2 * n - won + lost) * d - won - lost
        lost_share = (math.sqrt(max(b * b + 8 * n * lost * d * (1 - d), 0.0)) - b) / (4 * n)
        return (won - lost - n * d) ** 2 - quantile**2 * n * (2 * lost_share + d * (1 - d))

    measured = (won - lost) / n
    step = 1e-9  # off the measured difference, where there is no variance and so a root if no item differs
    low = -1.0 if measured - step <= -1 else brentq(beyond, -1.0, measured - step)
    high = 1.0 if measured + step >= 1 else brentq(beyond, measured + step, 1.0)
    return float(low), float(high)
