"""Texts of different lengths are read in one forward, and texts that go on from one another share what they have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byte_members import EXACT
from byte_oracle import model, tokenizer

from hf_eft.bytes import ByteLevelModel
from hf_eft.spelling.covers import Cost, Covers
from hf_eft.spelling.texts import Context

FAMILIES = ["llama", "gpt2", "mistral", "lfm2", "mamba"]
PADS = ("llama", "gpt2")  # the others have windows or recurrent states


def covers_of(family: str, name: str = "nested") -> Covers:
    reader = ByteLevelModel(model(name, 1, family), tokenizer(name), **EXACT)
    return reader._covers


def read(covers: Covers, after: list[Context | None], tokens: list[list[int]]) -> list[Context]:
    return covers.read(after, tokens, [0.0] * len(after))


def alone(covers: Covers, tokens: list[int]) -> torch.Tensor:
    """What the model says behind these tokens, without a cache and without other rows: `(width,)`."""
    logits = covers.member.model(input_ids=torch.tensor([tokens])).logits[:, -1].float()
    return covers.lexicon.read(logits)[0]


def same(context: Context, covers: Covers, tokens: list[int]) -> None:
    assert context.place.length == len(tokens)
    torch.testing.assert_close(context.table, alone(covers, tokens), atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_lengths_are_read_together(family: str) -> None:
    covers = covers_of(family)
    texts = [[3, 4, 5, 3, 4, 4, 5, 3], [4], [5, 5, 3]]
    covers.cost = Cost()
    begun = read(covers, [None] * 3, texts)
    assert covers.cost.forwards == (1 if family in PADS else 3)
    for context, text in zip(begun, texts, strict=True):
        same(context, covers, text)
    covers.cost = Cost()
    more = read(covers, begun, [[5], [3], [4]])
    assert covers.cost.forwards == (1 if family in PADS else 3)
    for context, text, token in zip(more, texts, (5, 3, 4), strict=True):
        same(context, covers, [*text, token])


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_go_on_from_one_another_share_their_beginning(family: str) -> None:
    """The same beginning goes on in three ways, one after the other and together, and none changes another."""
    covers = covers_of(family)
    [begun] = read(covers, [None], [[3, 4]])
    first = read(covers, [begun], [[5]])[0]
    second, third = read(covers, [begun, begun], [[4], [3]])
    ends: list[tuple[Any, list[int]]] = [(first, [3, 4, 5]), (second, [3, 4, 4]), (third, [3, 4, 3])]
    for step in range(40):  # longer than the room that a text is given at first
        grown = read(covers, [context for context, _ in ends], [[3 + (step + i) % 3] for i in range(3)])
        ends = [(context, [*text, 3 + (step + i) % 3]) for i, (context, (_, text)) in enumerate(zip(grown, ends, strict=True))]
    for context, text in ends:
        same(context, covers, text)
    same(read(covers, [first], [[4]])[0], covers, [3, 4, 5, 4])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_were_read_apart_go_on_together(family: str) -> None:
    covers = covers_of(family)
    texts = [[3, 4, 5, 3, 4, 4, 5, 3], [4], [5, 5, 3]]
    apart = [read(covers, [None], [text])[0] for text in texts]
    more = read(covers, apart, [[5], [3], [4]])
    for context, text, token in zip(more, texts, (5, 3, 4), strict=True):
        same(context, covers, [*text, token])
