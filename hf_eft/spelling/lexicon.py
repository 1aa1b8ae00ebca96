"""The tokens of a vocabulary in the order of their symbols: bytes, or other tokens."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

_LEAST = -1e30  # as good as no probability

Spelled = Sequence[int]  # the symbols of a token


@dataclass(eq=False)
class Node:
    r"""
    The tokens that begin with some symbols: `low:open` are these symbols, `open:high` go on. `next` has the next symbol of each of the
    latter, `ids` their ids, `children` the node of each next symbol.
    """

    depth: int
    low: int
    open: int
    high: int
    lexicon: Lexicon

    @functools.cached_property
    def next(self) -> torch.Tensor:
        return torch.tensor([text[self.depth] for text in self.lexicon.texts[self.open : self.high]], dtype=torch.long)

    @functools.cached_property
    def ids(self) -> torch.Tensor:
        return torch.tensor(self.lexicon.ids[self.open : self.high], dtype=torch.long)

    @functools.cached_property
    def children(self) -> dict[int, Node]:
        children, start, texts = {}, self.open, self.lexicon.texts
        for symbol, group in groupby(self.next.tolist()):
            high = start + sum(1 for _ in group)
            opened = start
            while opened < high and len(texts[opened]) == self.depth + 1:
                opened += 1
            children[symbol] = Node(self.depth + 1, start, opened, high, self.lexicon)
            start = high
        return children


class Lexicon:
    r"""
    The tokens of a model that may follow in a text, in the order of their symbols.

    Args:
        tokens (`Sequence[Sequence[int] | None]`): The symbols of each token; those with none are never generated.
        ends (`Collection[int]`): The ids that end a text.
        width (`int`): How many logits the model returns.
        symbols (`int`): How many symbols there are.

    Attributes:
        is_plain (`bool`): Whether every token is one symbol, and no two are the same: then a text is covered by one token sequence.
    """

    def __init__(self, tokens: Sequence[Spelled | None], ends: Collection[int], width: int, symbols: int) -> None:
        found = sorted((text, i) for i, text in enumerate(tokens[:width]) if text and i not in ends)
        if not found:
            raise ValueError("No token of the tokenizer is text that the model could write.")
        self.symbols = symbols
        self.texts = [text for text, _ in found]
        self.ids = [i for _, i in found]  # in the order of the texts
        self._ends = torch.tensor(sorted(i for i in ends if i < width), dtype=torch.long)
        known = {*self.ids, *ends}
        self._never = torch.tensor([i for i in range(width) if i not in known], dtype=torch.long)
        # A column that has no probability: of a token that is never generated or, where there is none, one behind all tokens.
        self._none = int(self._never[0]) if len(self._never) else width
        self.root = Node(0, 0, 0, len(found), self)
        self.is_plain = len(set(self.texts)) == len(found) and all(len(text) == 1 for text in self.texts)
        # What follows where a token has ended is what is said of one token, or of several: of the symbols that these begin with.
        first = self.root.next
        ids = torch.tensor(self.ids)
        symbol, count = first.unique_consecutive(return_counts=True)
        of_one = (count == 1).repeat_interleave(count)
        self._one = torch.full((symbols + 1,), self._none)
        self._one[first[of_one]] = ids[of_one]
        self._several = symbol[count > 1], ids[~of_one], count[count > 1]
        if len(self._ends) == 1:
            self._one[-1] = self._ends[0]

    def read(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probs of all tokens, `(..., width)`, from logits of the same shape: nothing but tokens of texts and their end can follow."""
        if len(self._never):
            logits = logits.index_fill(-1, self._never, -torch.inf)
        return logits.log_softmax(-1)

    def composed(self, columns: torch.Tensor) -> torch.Tensor | None:
        """
        The columns of tables, for [`Lexicon.taken`], in which these columns of what [`Lexicon.next`] returns are found, one behind the last
        of which has no probability; `None` if some are sums.
        """
        if len(self._several[0]) or len(self._ends) > 1:
            return None
        return torch.cat([self._one, self._one.new_tensor([self._none])])[columns]

    def taken(self, tables: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Columns of log-probs of tokens, `(rows, width)`, some of which may have no probability."""
        return taken(tables, columns) if self._none == tables.shape[1] else tables.index_select(1, columns)

    def next(self, tables: torch.Tensor) -> torch.Tensor:
        """
        Log-probs of the next symbol and, last, of the end of text, `(rows, symbols + 1)`, where a token has ended, from those of the
        tokens, `(rows, width)`.
        """
        following = self.taken(tables, self._one)
        symbols, ids, counts = self._several
        if len(symbols):
            following.index_copy_(1, symbols, grouped_log_sum(tables.index_select(1, ids), counts))
        if len(self._ends) > 1:
            following[:, -1] = tables.index_select(1, self._ends).logsumexp(-1)
        return following


def taken(log_probs: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Columns of log-probs, `(rows, columns)`, behind which there is one of no probability."""
    return torch.nn.functional.pad(log_probs, (0, 1), value=-torch.inf).index_select(1, columns)


def grouped_log_sum(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The log of the sums of what values, `(rows, n)`, are the logs of, of so many side by side, `(groups,)`: `(rows, groups)`."""
    lengths = counts.expand(len(values), -1).contiguous()
    top = torch.segment_reduce(values, "max", lengths=lengths, axis=1, unsafe=True)
    top.clamp_(min=_LEAST)  # where there is none, not the difference of two infinities
    shares = values.sub(top.repeat_interleave(counts, dim=1, output_size=values.shape[1])).exp_()
    return torch.segment_reduce(shares, "sum", lengths=lengths, axis=1, unsafe=True).log_().add_(top)
