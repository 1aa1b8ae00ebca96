"""What ends the rows of a call, asked of many tokens at once where that can be."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList

from .rows import Rows


class Ends:
    r"""
    The stopping criteria of a call. transformers' own for a token and for a length can be asked before it is known which tokens are kept,
    and the CPU knows lengths by itself. All others see texts: they are asked when it is known which tokens are kept.

    Args:
        criteria (`Iterable[StoppingCriteria]`): Those of the call.
        rows ([`~hf_eft.decoding.speculative.rows.Rows`]): The rows.
    """

    def __init__(self, criteria: Iterable[StoppingCriteria], rows: Rows) -> None:
        self._rows, criteria = rows, list(criteria)
        # What is derived from them may ask for anything.
        self._tokens = [each for each in criteria if type(each) is EosTokenCriteria]
        self._lengths = [each for each in criteria if type(each) is MaxLengthCriteria]
        others = [each for each in criteria if type(each) not in (EosTokenCriteria, MaxLengthCriteria)]
        self._others = StoppingCriteriaList(others)
        self._by_length: dict[int, bool] = {}  # every row comes to the same lengths

    @property
    def see_texts(self) -> bool:
        """Whether some criteria are asked of whole texts."""
        return bool(self._others)

    def by_token(self, tokens: torch.Tensor) -> torch.Tensor:
        """Whether each of these tokens, `(rows, n)`, ends its row, `(rows, n)`."""
        ends = torch.zeros_like(tokens, dtype=torch.bool)
        for each in self._tokens:
            ends |= each(tokens.reshape(-1, 1), None).view_as(ends)
        return ends

    def by_length(self, length: int) -> bool:
        """Whether a row of so many tokens ends."""
        if length not in self._by_length:
            ids = torch.zeros((), dtype=torch.long).expand(1, length)  # of the CPU, which is not waited for
            self._by_length[length] = any(bool(each(ids, None)) for each in self._lengths)
        return self._by_length[length]

    def behind(self, count: int) -> torch.Tensor:
        """Whether each of the tokens that were put behind the rows ends its row, `(rows, count)`."""
        ends = self.by_token(self._rows.behind(count))
        if self.see_texts:
            each = [self._rows.by_length(n, lambda ids: self._others(ids, None)) for n in range(1, count + 1)]
            ends |= torch.stack(each, dim=1)
        return ends
