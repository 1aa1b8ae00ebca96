"""What each batch of a training has: which examples, in an order that depends on a seed alone, and documents beside them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .chats import Example


def held_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    r"""
    Part a share of the examples from the rest; the same text is never in both.

    Args:
        examples (`Sequence[Example]`): All.
        share (`float`): How many are held out: above 0, below 1; one at least.
        seed (`int`): Which ones.

    Returns:
        `tuple`: What is learnt, and what is held out, both in the order of the file.

    Raises:
        `ValueError`: If there are too few different ones for both.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share that is held out must be above 0 and below 1, got {share:g}")
    texts = sorted({example.ids for example in examples})
    if len(texts) < 2:
        raise ValueError("there is one text only: none could be held out from what is learnt")
    count = min(max(1, round(share * len(texts))), len(texts) - 1)
    apart = set(random.Random(seed).sample(texts, count))
    return [e for e in examples if e.ids not in apart], [e for e in examples if e.ids in apart]


def check_apart(learnt: Sequence[Example], kept: Sequence[Example]) -> None:
    """Raise a `ValueError` if a text that is learnt is among those that are held out."""
    known = {example.ids: example.line for example in learnt}
    both = [(known[example.ids], example.line) for example in kept if example.ids in known]
    if both:
        raise ValueError(
            f"{len(both)} held-out texts are among those that are learnt, line {both[0][1]} as line {both[0][0]}: what is measured on them "
            "says nothing. Take them out of one of the files."
        )


@dataclass(frozen=True)
class Mixture:
    r"""
    The batches of a training, as a trainer reads a dataset in its order: which example stands where depends on the seed alone.

    Args:
        answers (`Sequence[Example]`): What is learnt; each once before any comes again.
        documents (`Sequence[Example]`): What is replayed beside it; may be empty.
        batch (`int`): Examples that are read together.
        batches (`int`): How many batches there are.
        share (`float`): The share of documents in each batch.
        seed (`int`): Of the order.
    """

    answers: Sequence[Example]
    documents: Sequence[Example]
    batch: int
    batches: int
    share: float
    seed: int

    def dataset(self) -> Any:
        """
        Returns:
            `datasets.Dataset`: `input_ids` and `labels`, `batch * batches` rows, of which each text is kept once.
        """
        from datasets import Dataset  # type: ignore[import-untyped]

        rows = [*self.answers, *self.documents]
        table = Dataset.from_list([example.features for example in rows])
        return table.select(self.order())

    def order(self) -> list[int]:
        """Where each row comes from: an index into the answers, followed by the documents."""
        replayed = self.replayed
        answers = _shuffled(len(self.answers), self.seed)
        documents = _shuffled(len(self.documents), self.seed + 1) if replayed else iter(())
        order: list[int] = []
        for _ in range(self.batches):
            order += [next(answers) for _ in range(self.batch - replayed)]
            order += [len(self.answers) + next(documents) for _ in range(replayed)]
        return order

    @property
    def replayed(self) -> int:
        """How many documents each batch has."""
        if not self.documents:
            return 0
        return min(max(1, round(self.share * self.batch)), self.batch - 1)


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count`, all of them before any comes again, each time in another order."""
    generator = random.Random(seed)
    while True:
        numbers = list(range(count))
        generator.shuffle(numbers)
        yield from numbers
