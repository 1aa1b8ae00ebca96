"""The rows of a batch that has come further in some rows than in others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...members.devices import sent


class Rows:
    r"""
    The tokens of all rows, each as far as it has come.

    Rows stand on the left, `tokens[r, :lengths[r]]` (their prompts padded on the left to one length, as `generate` hands them over),
    so that row `r` looks to processors and criteria as it does in plain decoding. Members read only those that are `present`, in this
    order; rows that have ended are not.
    """

    def __init__(self, prompt: torch.Tensor, room: int) -> None:
        self.count, self.prompt = prompt.shape
        self.tokens = torch.cat([prompt, prompt.new_zeros(self.count, room)], dim=1)
        self.lengths = [self.prompt] * self.count
        self._stay(list(range(self.count)))

    def put(self, ahead: torch.Tensor | int, values: torch.Tensor) -> None:
        """Write a token behind each present row, `ahead` tokens behind its end; `values` are `(present,)`."""
        self.tokens[self._places, self._ends + ahead] = values

    def put_all(self, values: torch.Tensor) -> None:
        """Write tokens, `(present, n)`, behind each present row."""
        self.tokens[self._behind(values.shape[1])] = values

    def behind(self, count: int) -> torch.Tensor:
        """The tokens that were put behind each present row, `(present, count)`."""
        return self.tokens[self._behind(count)]

    def _behind(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._places[:, None], self._ends[:, None] + torch.arange(count, device=self._ends.device)

    def last(self) -> torch.Tensor:
        """The token that no member has read yet, `(present, 1)`."""
        return self.tokens[self._places, self._ends - 1][:, None]

    def keep(self, staying: list[int]) -> None:
        """Go on with some of the present rows, given by their places among them."""
        self._stay([self.present[i] for i in staying])

    @property
    def room(self) -> int:
        """How many tokens can be put behind each row."""
        return self.tokens.shape[1] - max(self.lengths) - 1

    def go_on(self, appended: Sequence[int]) -> None:
        """Each present row has so many tokens more."""
        for row, count in zip(self.present, appended, strict=True):
            self.lengths[row] += count
        self._stay(self.present)

    def _stay(self, present: list[int]) -> None:
        # The tensors are needed for every token drafted, and change only here.
        self.present = present
        self._places, self._ends = sent([present, [self.lengths[row] for row in present]], self.tokens.device)

    def generated(self, ahead: int) -> list[int]:
        """How many tokens each present row has generated, `ahead` tokens behind its end."""
        return [self.lengths[row] - self.prompt + ahead for row in self.present]

    def among_all(self, values: torch.Tensor) -> torch.Tensor:
        """A copy of the values of present rows, `(present, ...)`, each at its place in the whole batch, `(rows, ...)`; 0 for the others."""
        if len(self.present) == self.count:
            return values.clone()
        return values.new_zeros(self.count, *values.shape[1:]).index_copy(0, self._places, values)

    def by_length(self, ahead: int, call: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """
        Call with the ids of all rows up to `ahead` tokens behind their ends, once for each length that there is among present rows;
        the answer for a present row, `(present, ...)`, is that of the call with its own length. Rows keep their places in the batch,
        which processors may go by.
        """
        ends = [self.lengths[row] + ahead for row in self.present]
        answers = {length: call(self.tokens[:, :length]) for length in sorted(set(ends))}
        if len(answers) == 1 and len(self.present) == self.count:
            return answers[ends[0]]
        return torch.stack([answers[end][row] for end, row in zip(ends, self.present, strict=True)])
