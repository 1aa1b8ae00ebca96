"""Where rows stand in the phases of a recipe while tokens are drafted ahead of them: each position has its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...recipe.phases import State
from ..phases import States, Strengths
from .rows import Rows


class Standing:
    r"""
    Follows the rows of a call that are present.

    Args:
        rows ([`Rows`]): The rows.
        strengths ([`~hf_eft.decoding.phases.Strengths`]): What depends on where they stand.
        states (`Sequence[State]`): Where they stand after the prompt.
    """

    def __init__(self, rows: Rows, strengths: Strengths, states: Sequence[State]) -> None:
        self.rows, self.strengths = rows, strengths
        self._known = [(rows.prompt, state) for state in states]  # by row, after how many tokens

    def coefficients(self, start: int, stop: int) -> torch.Tensor:
        """Those for the tokens from `start` to `stop` behind the ends of the rows present, `(rows, stop - start, members)`."""
        places = [self.rows.generated(ahead) for ahead in range(start, stop)]
        return self.strengths.coefficients(
            self._ahead(start, stop), lambda: list(zip(*places, strict=True)), self.rows.present, self.rows.count
        )

    def certain(self, start: int, stop: int) -> torch.Tensor | None:
        """The tokens that must come there, `(rows, stop - start)`; `None` if no phase has a budget."""
        return self.strengths.certain(self._ahead(start, stop)) if self.strengths.markers.budgeted else None

    def _ahead(self, start: int, stop: int) -> States:
        """Where the rows present stand before these tokens."""
        after, lengths = self.strengths.markers.after, [self.rows.lengths[row] for row in self.rows.present]
        behind = [self._known[row][0] for row in self.rows.present]
        states = []
        for row, length, first, tokens in zip(self.rows.present, lengths, behind, self._tokens(behind, stop - 1), strict=True):
            state = self._known[row][1]
            for token in tokens[: length - first]:
                state = after(state, token)
            self._known[row] = length, state
            ahead = [state]
            for token in tokens[length - first : length - first + stop - 1]:
                ahead.append(after(ahead[-1], token))
            states.append(ahead[start:])
        return states

    def _tokens(self, behind: Sequence[int], ahead: int) -> list[list[int]]:
        """The tokens of the rows present, from places `behind` their ends to `ahead` of them, and maybe more."""
        ends = [self.rows.lengths[row] + ahead for row in self.rows.present]
        count = max(end - first for end, first in zip(ends, behind, strict=True))
        if not count:
            return [[] for _ in behind]
        device = self.rows.tokens.device
        places = torch.tensor(behind, device=device)[:, None] + torch.arange(count, device=device)
        read: list[list[int]] = self.rows.tokens[
            torch.tensor(self.rows.present, device=device)[:, None], places.clamp(max=self.rows.tokens.shape[1] - 1)
        ].tolist()
        return read
