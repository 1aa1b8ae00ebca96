"""Intervals of differences of shares, over seeds and over the questions within each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4_000  # there are about a thousand intervals
LEVEL = 0.95
Seeds = Sequence[Sequence[float]]  # for each seed what each question scored, 1 or 0


class Found(NamedTuple):
    """A mean over seeds, and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether all of the interval is above 0."""
        return self.low > 0

    def shown(self, digits: int = 2, sign: bool = False) -> str:
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        value, low, high = (form.format(x if round(x, digits) else 0.0) for x in self)
        return f"{value} [{low}, {high}]"


def of_difference(first: Seeds, second: Seeds, seed: int = 0) -> Found:
    """
    The mean over seeds of `first - second`, which were asked the same questions. The bootstrap draws seeds, and for each that it draws the
    questions anew, both with replacement: what it says is about other seeds and other questions of this world.
    """
    means, questions, shares = [], [], []
    for one, other in zip(first, second, strict=True):
        differences = [a - b for a, b in zip(one, other, strict=True)]
        questions.append(len(differences))
        shares.append([sum(d == kind for d in differences) / len(differences) for kind in (1, -1, 0)])
        means.append(sum(differences) / len(differences))
    random = np.random.default_rng(seed)
    drawn = random.integers(len(means), size=(RESAMPLES, len(means)))
    # Drawing questions with replacement is drawing how many of them are won, lost and neither.
    counts = random.multinomial(np.array(questions)[drawn], np.array(shares)[drawn])  # (resamples, seeds, 3)
    resampled = (counts[..., 0] - counts[..., 1]) / np.array(questions)[drawn]
    low, high = np.quantile(resampled.mean(-1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Found(float(np.mean(means)), float(low), float(high))


def of_share(scores: Seeds, seed: int = 0) -> Found:
    """The same of a share."""
    return of_difference(scores, [[0.0] * len(each) for each in scores], seed)


def of_means(values: Sequence[float], seed: int = 0) -> Found:
    """Of one figure for each seed: the bootstrap draws seeds."""
    random = np.random.default_rng(seed)
    drawn = np.asarray(values)[random.integers(len(values), size=(RESAMPLES, len(values)))].mean(-1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Found(float(np.mean(values)), float(low), float(high))
