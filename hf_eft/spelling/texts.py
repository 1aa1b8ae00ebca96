"""What is known of a text: the token sequences that cover it, how probable they are, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .lexicon import Node
from .states import Place


@dataclass(eq=False)
class Context:
    """A token sequence that was read: its log-probability, what the model says follows it, and where its states are."""

    log_prob: float
    tables: torch.Tensor  # (rows, width), log-probs of the next token behind all that were read together
    row: int
    place: Place
    ahead: dict[int, Context] = field(default_factory=dict)  # by next token, what was read with it already

    @property
    def table(self) -> torch.Tensor:
        """Log-probs of the next token, `(width,)`."""
        return self.tables[self.row]


@dataclass(eq=False)
class Spare:
    """A token behind a context that was not read: what it weighs, and the symbols of the text since."""

    log_prob: float
    context: Context
    token: int
    tail: tuple[int, ...] = ()


def entries(wanted: Sequence[tuple[torch.Tensor, int, int]]) -> list[float]:
    """Numbers out of matrices, by matrix, row and column; those of one matrix are taken out together."""
    by_matrix: dict[int, list[int]] = {}
    for i, (matrix, *_) in enumerate(wanted):
        by_matrix.setdefault(id(matrix), []).append(i)
    found = [0.0] * len(wanted)
    for places in by_matrix.values():
        matrix, rows, columns = wanted[places[0]][0], [wanted[i][1] for i in places], [wanted[i][2] for i in places]
        for i, value in zip(places, matrix.numpy()[rows, columns].tolist(), strict=True):
            found[i] = value
    return found


def log_sum(values: Sequence[float]) -> float:
    """The log of the sum of what these are the logs of."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values)) if top > -math.inf else top


class Missing(NamedTuple):
    r"""
    The share of a text's probability that was left out; by so much, in total variation, is the distribution of the next symbol wrong.

    Args:
        estimate (`float`): What it is if covers that were left out would have lost as much by each symbol since as those that were kept.
        bound (`float`): What it is at most: if they would have lost nothing. It goes to 1 as a text grows.
    """

    estimate: float
    bound: float


@dataclass(eq=False)
class State:
    r"""
    A text as the model reads it.

    A cover is a token sequence whose symbols begin the text, and the node of what is left of the text: its next token crosses the text's
    end.

    Args:
        covers (`list[tuple[Context, Node]]`): The covers that are kept.
        spares (`list[Spare]`): The most likely of those that were left out.
        left_out (`float`): The log of an upper bound of the probability of all that was left out.
        kept (`float`): The share that was kept, if what was left out would have gone on as what was kept did.
        log_prob (`float`): The log-probability of the text, over the covers that are kept: a lower bound; of [`measured`] states.
        said (`torch.Tensor` of shape `(rows, symbols + 1)`, *optional*):
            In the `row` of this text, the log-probs of the next symbol and, last, of the end of text, over the covers that are kept; of
            [`measured`] states. Other rows are of texts that were measured with it.
    """

    covers: list[tuple[Context, Node]]
    spares: list[Spare] = field(default_factory=list)
    left_out: float = -math.inf
    kept: float = 1.0
    log_prob: float = field(init=False, default=-math.inf)
    said: torch.Tensor | None = field(init=False, repr=False, default=None)
    row: int = field(init=False, repr=False, default=0)

    @property
    def next(self) -> torch.Tensor | None:
        """The log-probs of the next symbol and, last, of the end of text, `(symbols + 1,)`."""
        return None if self.said is None else self.said[self.row]

    @property
    def missing(self) -> Missing:
        """How much of the text's probability was left out."""
        if self.left_out == -math.inf:
            return Missing(0.0, 0.0)
        return Missing(1 - self.kept, 1 / (1 + math.exp(min(700.0, self.log_prob - self.left_out))))
