"""What the text so far drafts: what followed its last tokens when they stood there before."""

from __future__ import annotations

import pytest
import torch

from hf_eft.decoding.speculative.drafting import LookupDrafter, NoDrafter
from hf_eft.decoding.speculative.rows import Rows


def guess(text: list[int], ngram: int) -> int:
    return LookupDrafter(None, 64, ngram)._guess(torch.tensor(text))


@pytest.mark.parametrize(
    ("text", "ngram", "expected"),
    [
        ([5, 6, 7, 8, 5, 6], 2, 7),
        ([5, 6, 7, 5, 6, 8, 5, 6], 2, 8),  # the last time
        ([9, 5, 6, 8, 5, 6], 2, 8),
        ([5, 6, 7, 3, 6, 8, 5, 6], 2, 7),  # two tokens say more than one
        ([5, 6, 7, 3, 6, 8, 5, 6], 1, 8),
        ([5, 6, 7, 9, 6], 2, 7),  # one will do
        ([6, 5, 7, 5, 6], 3, 5),
        ([5, 6, 7], 2, 7),  # nothing stood there before: the last once more
        ([5, 5], 4, 5),
        ([5, 6, 5], 4, 6),
        ([5, 6, 5, 6], 4, 5),
        ([5], 2, 5),
    ],
    ids=str,
)
def test_what_followed_the_last_tokens_is_guessed(text: list[int], ngram: int, expected: int) -> None:
    assert guess(text, ngram) == expected


def test_every_row_that_is_left_drafts_from_its_own_text() -> None:
    rows = Rows(torch.tensor([[5, 6, 7, 5], [8, 9, 8, 9], [3, 4, 3, 4]]), room=8)
    rows.put(0, torch.tensor([6, 8, 3]))
    rows.lengths = [5, 5, 4]  # the last has ended, and what stands behind its end is no text
    rows.keep([0, 1])
    drafter = LookupDrafter(rows, 16, 2)
    drafted = []
    for ahead in range(3):
        logits = drafter.step(rows.last(), ahead)["prompt lookup"]
        assert logits.shape == (2, 1, 16) and bool(logits.isfinite().all())
        drafted.append(logits[:, 0].argmax(-1))
        assert torch.equal(logits[:, 0].softmax(-1), torch.nn.functional.one_hot(drafted[-1], 16).float())
        rows.put(ahead, drafted[-1])
    assert torch.stack(drafted, 1).tolist() == [[7, 5, 6], [9, 8, 9]]
    drafter.settle([0, 0], rows.tokens[:, :0])
    assert drafter.step(rows.last(), 0)["prompt lookup"][:, 0].argmax(-1).tolist() == [7, 9]


def test_nothing_is_drafted_by_nobody() -> None:
    rows = Rows(torch.tensor([[5, 6], [7, 8]]), room=2)
    assert NoDrafter(rows).step(rows.last(), 0)["prompt lookup"].shape == (2, 1, 1)
