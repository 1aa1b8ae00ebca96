"""The scores of several systems on the same items, and what can be said about them: differences, gaps recovered, warnings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import as_json, load_json, write
from ..recipe.combination import BASE, REFERENCE
from .intervals import Interval, Items, of_difference, of_gap, of_value

COMBINED = "combined"
TUNED_LARGE = "tuned_large"
_FORMAT = 1


@dataclass(frozen=True)
class Score:
    """
    One metric of one system on one task.

    Args:
        value (`float`): The score, as lm-evaluation-harness aggregates it.
        n (`int`): How many items were measured.
        higher_is_better (`bool`): The metric's direction.
        items ([`~hf_eft.evaluation.intervals.Items`], *optional*): Each item's score; `None` if the metric is one of all items at once.
    """

    value: float
    n: int
    higher_is_better: bool
    items: Items | None = None

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Score:
        """What `dataclasses.asdict` made of it."""
        items = described["items"]
        if items is not None:
            items = Items([float(score) for score in items["scores"]], items["weights"], items["aggregation"])
        return cls(float(described["value"]), described["n"], described["higher_is_better"], items)


@dataclass
class Evaluation:
    """
    The scores of several systems on the same items, and what can be said about them.

    Args:
        scores (`dict[str, dict[str, dict[str, Score]]]`): By task, system and metric.
        replies (`dict[str, dict[str, list[str]]]`): By task and system, what was written, item by item, where a task has it written.
        settings (`dict[str, Any]`): How it was measured: limit, seed, batch size, versions, date.

    Example:

    ```python
    >>> from hf_eft.evaluation import Evaluation, Score
    >>> from hf_eft.evaluation.intervals import Items

    >>> right = {"tuned": [1, 1, 1, 1, 1, 1, 1, 1, 0, 1], "combined": [0, 1, 0, 0, 1, 0, 0, 1, 0, 0]}
    >>> scores = {name: {"style": Score(sum(each) / 10, 10, True, Items(each))} for name, each in right.items()}
    >>> evaluation = Evaluation({"answers": scores})
    >>> difference = evaluation.compare("combined", "tuned", "answers", "style")
    >>> print(f"{difference.value:+.1f} [{difference.low:+.2f}, {difference.high:+.2f}]")
    -0.6 [-0.83, -0.16]
    >>> len(evaluation.warnings())
    1

    ```
    """

    scores: dict[str, dict[str, dict[str, Score]]]
    replies: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def systems(self) -> list[str]:
        """The systems, in the order in which they were given."""
        return list(dict.fromkeys(system for by_system in self.scores.values() for system in by_system))

    @property
    def small_tuned(self) -> list[str]:
        """The systems that the combination ought to beat: the tuned members."""
        return [system for system in self.systems if system not in (BASE, REFERENCE, COMBINED, TUNED_LARGE)]

    def metrics(self) -> Iterator[tuple[str, str]]:
        """Every task with every metric that it has for all systems."""
        for task, by_system in self.scores.items():
            first, *others = by_system.values()
            yield from ((task, metric) for metric in first if all(metric in other for other in others))

    def score(self, system: str, task: str, metric: str) -> Score:
        """
        One score.

        Raises:
            `KeyError`: If it was not measured; the message says what was.
        """
        found: Any = self.scores
        for name, what in ((task, "task"), (system, "system"), (metric, "metric")):
            if name not in found:
                raise KeyError(f"The {what} {name!r} was not measured; there are {list(found)}.")
            found = found[name]
        return found

    def interval(self, system: str, task: str, metric: str, level: float = 0.95) -> Interval:
        """Where a system's score lies: Wilson's interval of a share, a bootstrap over the items of anything else."""
        return of_value(self._items(system, task, metric), level, self._seed)

    def compare(self, first: str, second: str, task: str, metric: str, level: float = 0.95) -> Interval:
        """
        The difference of two systems' scores, `first - second`, over the same items.

        Args:
            first (`str`): A system.
            second (`str`): The one that is subtracted.
            task (`str`): The task.
            metric (`str`): The metric.
            level (`float`, *optional*, defaults to 0.95): The probability of the interval.

        Returns:
            [`~hf_eft.evaluation.intervals.Interval`]: In units of the metric: below 0 is worse only where higher is better.

        Raises:
            `KeyError`: If it was not measured.
            `ValueError`: If the metric has no scores of items.
        """
        return of_difference(self._items(first, task, metric), self._items(second, task, metric), level, self._seed)

    def gap_recovered(
        self,
        task: str,
        metric: str,
        *,
        system: str = COMBINED,
        floor: str | None = None,
        ceiling: str = TUNED_LARGE,
        level: float = 0.95,
    ) -> Interval:
        """
        The share of a gap that a system recovers: by default 0 is the small tuned model and 1 the directly tuned large one, as in
        the EFT paper.

        Args:
            task (`str`): The task.
            metric (`str`): The metric.
            system (`str`, *optional*, defaults to `"combined"`): Whose share it is.
            floor (`str`, *optional*): What counts as 0; the tuned member if left out.
            ceiling (`str`, *optional*, defaults to `"tuned_large"`): What counts as 1.
            level (`float`, *optional*, defaults to 0.95): The probability of the interval.

        Raises:
            `ValueError`: If floor and ceiling do not differ by more than chance, or there are several tuned members to choose from.
        """
        if floor is None:
            if len(self.small_tuned) != 1:
                raise ValueError(f"Say which system is the `floor`: there are {self.small_tuned}.")
            floor = self.small_tuned[0]
        own, zero, one = (self._items(name, task, metric) for name in (system, floor, ceiling))
        return of_gap(own, zero, one, level, self._seed)

    def is_worse(self, first: str, second: str, task: str, metric: str, level: float = 0.95) -> bool:
        """Whether `first` is worse than `second` by more than chance: the whole interval of their difference is on the worse side."""
        difference = self.compare(first, second, task, metric, level)
        higher = self.score(first, task, metric).higher_is_better
        return difference.high < 0 if higher else difference.low > 0

    def warnings(self, level: float = 0.95) -> list[str]:
        """
        Where the combination is worse than a small tuned model by more than chance, in words. Every metric is looked at by itself: of
        many, about one in 40 warns by chance alone.
        """
        found = []
        for task, metric in self.metrics():
            for small in self.small_tuned if COMBINED in self.systems else ():
                if self.score(small, task, metric).items is None or not self.is_worse(COMBINED, small, task, metric, level):
                    continue
                by = self.compare(COMBINED, small, task, metric, level)
                ours, theirs = (self.score(system, task, metric).value for system in (COMBINED, small))
                found.append(
                    f"{task}, {metric}: the combination ({ours:.4g}) is worse than {small!r} alone ({theirs:.4g}), by {by.value:+.4g} "
                    f"[{by.low:+.4g}, {by.high:+.4g}] over {by.items} items."
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: settings, every score with its items, and what follows from them."""
        compared = [
            {
                "task": task,
                "metric": metric,
                "systems": [COMBINED, small],
                **asdict(self.compare(COMBINED, small, task, metric)),
            }
            for task, metric in self.metrics()
            for small in self.small_tuned
            if COMBINED in self.systems and self.score(small, task, metric).items is not None
        ]
        return {
            "format": _FORMAT, "settings": self.settings, "warnings": self.warnings(), "comparisons": compared,
            "scores": {
                task: {system: {metric: asdict(score) for metric, score in metrics.items()} for system, metrics in by_system.items()}
                for task, by_system in self.scores.items()
            },
            "replies": self.replies,
        }  # fmt: skip

    def to_json(self, path: str | Path | None = None) -> str:
        """The evaluation as JSON, also written to a file if one is given."""
        text = as_json(self.to_dict())
        if path is not None:
            write(Path(path), text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> Evaluation:
        """
        Read what [`Evaluation.to_json`] wrote.

        Args:
            source (`str` or `Path`): The file, as a `Path`, or the text itself.

        Raises:
            `ValueError`: If it is something else.
        """
        where = source if isinstance(source, Path) else "The text"
        try:
            described = load_json(source) if isinstance(source, Path) else json.loads(source)
            if described["format"] != _FORMAT:
                raise ValueError(f"expected format {_FORMAT}, got {described['format']!r}")
            scores = {
                task: {
                    system: {metric: Score.from_dict(score) for metric, score in metrics.items()}
                    for system, metrics in by_system.items()
                }
                for task, by_system in described["scores"].items()
            }
            return cls(scores, described["replies"], described["settings"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{where} is not an evaluation of this library: {type(error).__name__}: {error}.") from error

    def _items(self, system: str, task: str, metric: str) -> Items:
        items = self.score(system, task, metric).items
        if items is None:
            raise ValueError(f"The metric {metric!r} of {task!r} is one of all items at once, so that it has no interval.")
        return items

    @property
    def _seed(self) -> int:
        return int(self.settings.get("seed", 0))
