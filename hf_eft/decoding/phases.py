"""Where the rows of a call stand in the phases of the recipe, and what follows from it: coefficients, and tokens that are certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..members import prefix
from ..members.vocabulary import Vocabulary
from ..prompts import MemberPrompts
from ..recipe.combination import Combination
from ..recipe.phases import OUTSIDE, Markers, Phase, State, speller

States = Sequence[Sequence[State]]  # (rows, positions)


def markers_of(phases: Sequence[Phase], tokenizers: Mapping[str, Any], vocabulary: Vocabulary) -> Markers:
    r"""
    The markers of phases, as tokens of the members.

    Args:
        phases (`Sequence[Phase]`): The phases.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`): Those of the members, by name. A tuned member's says, where there is one.
        vocabulary ([`~hf_eft.members.vocabulary.Vocabulary`]): The tokens that are generated.

    Raises:
        `ValueError`: If a marker is none of these tokens, or a phase could never end.
    """
    markers = Markers(phases, speller(tokenizers))
    for phase, end in zip(phases, markers.ends, strict=True):
        for token in end:
            if token >= vocabulary.size or not (vocabulary.known is None or bool(vocabulary.known[token])):
                raise ValueError(
                    f"The phase {phase.name!r} could never end: the token {token} of its marker {phase.end!r} is none that all members "
                    f"have ({vocabulary.size} tokens), so that it is never generated. Name the markers that they write: "
                    "`Phase(start=..., end=...)`."
                )
    return markers


class Phases:
    r"""
    Follows the rows of a call token by token. What it knows is found by the tokens themselves, so that rows may grow, be permuted (beams),
    rolled back or replaced: what cannot be found is read from the start.

    Args:
        markers ([`~hf_eft.recipe.phases.Markers`]): What begins and ends a phase.
        prompts (`Sequence[torch.Tensor]`, *optional*):
            Prompts of their own that members read, `(rows, length)` each, padding marked as in `prefix.keys`. Where the call's prompt ends
            in no phase, the first of these that does says in which the text goes on.
        start (`int`, *optional*, defaults to 0): Where the prompt of the call ends.
    """

    def __init__(self, markers: Markers, prompts: Sequence[torch.Tensor] = (), start: int = 0) -> None:
        self.markers, self._start = markers, start
        self._opened: list[State] = []  # by row
        self._opened = self._by_row(prompts)
        self._keys: torch.Tensor | None = None  # (rows, length) of what was read for good
        self._states: list[State] = []

    @classmethod
    def of(cls, markers: Markers, own: MemberPrompts | None, input_ids: torch.Tensor, start: int) -> Phases:
        """For rows, `(rows, length)`, some of whose members may read prompts of their own, while the call's ends at `start`."""
        names = own.names if own is not None else ()
        return cls(markers, [prefix.keys(*own.followed_by(name, input_ids[:, :0])) for name in names if own is not None], start)

    def _by_row(self, prompts: Sequence[torch.Tensor]) -> list[State]:
        ends = [[self._read(row, OUTSIDE, tokens, -1)[-1] for row, tokens in enumerate(prompt.tolist())] for prompt in prompts]
        return [next((state for state in row if state.phase), OUTSIDE) for row in zip(*ends, strict=True)]

    def _read(self, row: int, state: State, tokens: Sequence[int], at: int) -> list[State]:
        """The states of a row after each of some tokens, padding among them, of which the first is its token number `at`."""
        states = []
        for read, token in enumerate(tokens, at + 1):
            if token != prefix.PADDING:
                state = self.markers.after(state, token)
            if read == self._start and self._opened and not state.phase:
                state = self._opened[row]
            states.append(state)
        return states

    def after(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, count: int) -> States:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): Every token so far.
            attention_mask (`torch.Tensor` of shape `(rows, length)`, *optional*): 0 where a token is padding.
            count (`int`): Of how many positions from the right.

        Returns:
            The states after each of them, `(rows, count)`.
        """
        keys = prefix.keys(input_ids, attention_mask)
        settled = keys.shape[1] - count  # what is read now may be rolled back
        states, at = self._found(keys[:, :settled])
        read = [
            [state, *self._read(row, state, new, at)]
            for row, (state, new) in enumerate(zip(states, keys[:, at:].tolist(), strict=True))
        ]
        self._keys, self._states = keys[:, :settled].clone(), [row[settled - at] for row in read]
        return [row[settled - at + 1 :] for row in read]

    def _found(self, keys: torch.Tensor) -> tuple[list[State], int]:
        """The states of rows, and after how many of these tokens."""
        known = self._keys
        if known is not None and 0 < known.shape[1] <= keys.shape[1]:
            rows, keep = prefix.match(known, keys)
            if keep == known.shape[1]:
                return (self._states if rows is None else [self._states[row] for row in rows.tolist()]), keep
        return [OUTSIDE] * len(keys), 0


class Strengths:
    r"""
    What of a recipe depends on where rows stand.

    Args:
        combination ([`Combination`]): The recipe.
        names (`Sequence[str]`): The members, in the order of the columns.
        markers ([`~hf_eft.recipe.phases.Markers`]): Its phases.
        given (`torch.Tensor` of shape `(batch, phases, members)`, *optional*):
            Coefficients of a call's rows, in place of the recipe's.
    """

    def __init__(
        self, combination: Combination, names: Sequence[str], markers: Markers, given: torch.Tensor | None = None
    ) -> None:
        self.combination, self.names, self.markers, self.given = combination, names, markers, given
        self._table = None if given is not None or combination.scheduled else self._at([0])[0]  # (phases, members)

    def _at(self, positions: Sequence[int]) -> torch.Tensor:
        """`(positions, phases, members)`."""
        return torch.stack([self.combination.at(positions, self.names, phase) for phase in self.markers.names], dim=1)

    def coefficients(
        self, states: States, generated: Callable[[], Sequence[Sequence[int]]], places: Sequence[int], rows: int
    ) -> torch.Tensor:
        r"""
        Args:
            states (`Sequence[Sequence[State]]`): Where rows stand, `(rows, positions)`.
            generated (`Callable`): Says how many tokens they have generated there, for schedules.
            places (`Sequence[int]`): Which rows of the call they are.
            rows (`int`): How many the call has.

        Returns:
            `torch.FloatTensor` of shape `(rows, positions, members)`.
        """
        phases = torch.tensor([[state.phase for state in row] for row in states])  # (rows, positions)
        if self._table is not None:
            return self._table[phases]
        if self.given is not None:
            each = rows // len(self.given)
            return self.given[torch.tensor([place // each for place in places])[:, None], phases]
        return torch.stack(
            [self._at(list(row))[torch.arange(len(row)), own] for row, own in zip(generated(), phases, strict=True)]
        )

    def certain(self, states: States) -> torch.Tensor | None:
        """The tokens that must follow, `(rows, positions)`, -1 where none must; `None` if no phase has a budget."""
        if not self.markers.budgeted:
            return None
        return torch.tensor([[self.markers.certain(state) for state in row] for row in states])
