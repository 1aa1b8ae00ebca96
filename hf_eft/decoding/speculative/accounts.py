"""What the rounds of a call came to: for its report, and for the schedule to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .ahead import Draft
from .clock import Clock
from .drafting import Drafter
from .schedule import Automatic, Fixed, Report


class Accounts:
    r"""
    Keeps the report of a call.

    Args:
        drafters (`Sequence[Drafter]`): Who may draft.
        schedule ([`Fixed`] or [`Automatic`]): What learns from the rounds.
    """

    def __init__(self, drafters: Sequence[Drafter], schedule: Fixed | Automatic) -> None:
        self.drafters, self.schedule = drafters, schedule
        self.report = Report()
        self._untimed: list[Callable[[], None]] = []

    def add(
        self, draft: Draft, block: int, kept: list[int], would: Mapping[str, list[list[float]]], clock: Clock, read_all: bool
    ) -> None:
        r"""
        Add a round. Where its times are waited for, they are asked with the next look, and what learns from times does so then.

        Args:
            draft ([`~hf_eft.decoding.speculative.ahead.Draft`]): What was drafted, and by whom.
            block (`int`): How many tokens of it the others looked at.
            kept (`list[int]`): How many of these each row kept; below 0 for rows that had ended.
            would (`Mapping[str, list[list[float]]]`): By name, how drafters that did not draft would have agreed, by row and position.
            clock ([`~hf_eft.decoding.speculative.clock.Clock`]): Of drafting, verifying, the drafter's last step, and the rest.
            read_all (`bool`): Whether the drafter read the whole block.
        """
        agreed, who = self._agreed(block, kept, would), self.drafters.index(draft.drafter)
        by_name = {each.name: values for each, values in zip(self.drafters, agreed, strict=False)}
        self.report.count(draft.drafter.name, block, kept, by_name)
        self.report.bonus_steps += int(read_all)
        self.report.ahead += draft.is_ahead
        costs = draft.drafter.costs and not draft.is_ahead
        present = [n for n in kept if n >= 0]
        if not self.schedule.learns:
            self.schedule.record(who, block, present, agreed, 0.0, 0.0)

        def timed() -> None:
            drafting, verifying, reading, ending = clock.seconds()
            self.report.drafting += drafting + reading
            self.report.verifying += verifying + ending
            steps = block + int(read_all)
            one = (drafting + reading) / steps if steps and costs else 0.0
            if self.schedule.learns:
                self.schedule.record(who, block, present, agreed, one, verifying + ending)

        self._untimed.append(timed)
        if not clock.waits:
            self.settle()

    def settle(self) -> None:
        """Ask for the times of all rounds that were added."""
        while self._untimed:
            self._untimed.pop(0)()

    def _agreed(self, block: int, kept: list[int], would: Mapping[str, list[list[float]]]) -> list[list[float]]:
        """By drafter, how it agreed with the target at each position that was come to: of who did not draft, how it would have."""
        if not self.schedule.learns:
            return []
        drafted = [float(i < n) for n in kept for i in range(min(n + 1, block))]
        return [
            [x for row, n in zip(would[each.name], kept, strict=True) for x in row[: n + 1]] if each.name in would else drafted
            for each in self.drafters
        ]
