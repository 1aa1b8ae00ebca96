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
        self._known: dict[
            int, tuple[Any, int, State]
        ] = {}  # by identity: a request, how much of it was read, and where it stands
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
            markers = markers_of(combination.phases, self._model._spellers, members.vocabulary)
            self._of, self._known = (combination, Strengths(combination, members.names, markers)), {}
        return self._of[1]

    def look(self, requests: Sequence[Any]) -> None:
        """Read what is new of the requests, `RequestState` each, that will get a token."""
        strengths = self._strengths()
        if strengths is None:
            return
        known, self._known, self._now = self._known, {}, []
        for request in requests:
            _, read, state = known.get(id(request), (request, 0, OUTSIDE))
            prompt, new = request.initial_tokens, request.generated_tokens
            for token in [*prompt[read:], *new[max(0, read - len(prompt)) :]]:
                state = strengths.markers.after(state, token)
            self._known[id(request)] = request, len(prompt) + len(new), state
            self._now.append(state)

    def rows(self, given: Sequence[Any]) -> list[Sequence[float]]:
        """The coefficients of each request: its own, for all of its text or by phase, or else the recipe's."""
        strengths = self._strengths()
        if strengths is None or not self._now:
            return list(given)
        count = len(self._now)
        recipe = strengths.coefficients([self._now], lambda: [[0] * count], [0], 1)[0].tolist()
        return [
            default if own is None else own[state.phase] if isinstance(own[0], tuple) else own
            for own, default, state in zip(given, recipe, self._now, strict=True)
        ]

    def certain(self, count: int) -> torch.Tensor | None:
        """The tokens that must follow, `(1, count)`, rows without a request at the end."""
        strengths = self._strengths()
        return None if strengths is None else strengths.certain([[*self._now, *[OUTSIDE] * (count - len(self._now))]])
