"""The rows of a batch that has come further in some rows than in others."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Rows:
    r"""
    The tokens of all rows, each as far as it has come.

    Rows stand on the left, `tokens[r, :lengths[r]]` (their prompts padded on the left to one length, as `generate` hands them over),
    so that row `r` looks to processors and criteria as it does in plain decoding.
    """

    def __init__(self, prompt: torch.Tensor, room: int) -> None:
        self.count, self.prompt = prompt.shape
        self.tokens = torch.cat([prompt, prompt.new_zeros(self.count, room)], dim=1)
        self.lengths = [self.prompt] * self.count
        self.running = [True] * self.count

    def put(self, ahead: torch.Tensor | int, values: torch.Tensor) -> None:
        """Write a token behind each row, `ahead` tokens behind its end; `values` are `(rows,)`."""
        self.tokens.scatter_(1, (self._ends() + ahead)[:, None], values[:, None])

    def last(self) -> torch.Tensor:
        """The token that no member has read yet, `(rows, 1)`."""
        return self.tokens.gather(1, self._ends()[:, None] - 1)

    def _ends(self) -> torch.Tensor:
        return torch.tensor(self.lengths, device=self.tokens.device)

    def generated(self, ahead: int) -> list[int]:
        """How many tokens each row has generated, `ahead` tokens behind its end."""
        return [length - self.prompt + ahead for length in self.lengths]

    def by_length(self, ahead: int, call: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """
        Call with the ids of all rows up to `ahead` tokens behind their ends, once for each length that there is among running rows;
        the answer for a row is that of the call with its own length. Rows keep their places in the batch, which processors may go by.
        """
        wanted = {length + ahead for length, running in zip(self.lengths, self.running, strict=True) if running}
        answers = {length: call(self.tokens[:, :length]) for length in sorted(wanted)}
        first = next(iter(answers.values()))
        if len(answers) == 1:
            return first
        return torch.stack([answers.get(length + ahead, first)[row] for row, length in enumerate(self.lengths)])
