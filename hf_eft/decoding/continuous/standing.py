"""Where requests that come and go stand in the phases of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...members.combined import Generates
from ...recipe.combination import Combination
from ...recipe.phases import OUTSIDE, State
from ..phases import Strengths, markers_of


class RequestStanding:
    """Follows the tokens of requests; those that leave are forgotten."""

    def __init__(self) -> None:
        self._of: tuple[Combination, Strengths] | None = None
        self._model: Generates | None = None
        self._known: dict[str, tuple[int, int, State]] = {}  # by request: its prompt's length, how much was read, and where it stands
        self._now: list[State] = []

    def begin(self, model: Generates) -> None:
        """Whose recipe holds. Raises a `ValueError` if the markers of its phases are not known."""
        self._model, self._known = model, {}
        self._strengths()

    def _strengths(self) -> Strengths | None:
        """What depends on where requests stand, in the recipe as it is now."""
        if self._model is None or not self._model.combination.phased:
            return None
        combination, members = self._model.combination, self._model._members
        if self._of is None or self._of[0] is not combination:
            markers = markers_of(combination.phases, self._model.tokenizers, members.vocabulary)
            self._of, self._known = (combination, Strengths(combination, members.names, markers)), {}
        return self._of[1]

    def look(self, requests: Sequence[Any]) -> None:
        """Read what is new of the requests, `RequestState` each, that will get a token."""
        strengths = self._strengths()
        if strengths is None:
            return
        known, self._known, self._now = self._known, {}, []
        for request in requests:
            prompt, new = request.initial_tokens, request.generated_tokens
            length, read, state = known.get(request.request_id, (len(prompt), 0, OUTSIDE))
            if length != len(prompt):  # begun anew, with what was generated as a part of its prompt
                length, read, state = len(prompt), 0, OUTSIDE
            for token in [*prompt[read:], *new[max(0, read - length) :]]:
                state = strengths.markers.after(state, token)
            self._known[request.request_id] = length, len(prompt) + len(new), state
            self._now.append(state)

    def coefficients(self) -> list[list[float]]:
        """Of each request."""
        strengths = self._strengths()
        if strengths is None or not self._now:
            return []
        count = len(self._now)
        rows: list[list[float]] = strengths.coefficients([self._now], lambda: [[0] * count], [0], 1)[0].tolist()
        return rows

    def certain(self, count: int) -> torch.Tensor | None:
        """The tokens that must follow, `(1, count)`, rows without a request at the end."""
        strengths = self._strengths()
        found = None if strengths is None else strengths.certain([[*self._now, *[OUTSIDE] * (count - len(self._now))]])
        return found
