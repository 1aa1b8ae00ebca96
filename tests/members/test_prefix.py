"""Matching what was read with what is asked."""

from __future__ import annotations

import pytest
import torch

from hf_eft.members import prefix

OLD = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 6], [7, 8, 9, 9]])


@pytest.mark.parametrize(
    "new, rows, keep",
    [
        ([[1, 2, 3, 4, 9], [1, 2, 5, 6, 9], [7, 8, 9, 9, 9]], None, 4),  # appended
        ([[1, 2, 3], [1, 2, 5], [7, 8, 9]], None, 3),  # rolled back
        ([[1, 2, 3, 0], [1, 2, 5, 0], [7, 8, 9, 0]], None, 3),  # rolled back and on
        ([[7, 8, 9, 9, 1], [1, 2, 3, 4, 1], [1, 2, 3, 4, 2]], [2, 0, 0], 4),  # permuted and duplicated
        ([[1, 2, 5, 6, 1]], [1], 4),  # dropped
        ([[1, 2, 3, 4, 0], [3, 2, 5, 6, 0], [7, 8, 9, 9, 0]], None, 0),  # a row that was never read
        ([[7, 8, 0], [7, 8, 1], [7, 1, 1], [1, 0, 0]], [2, 2, 2, 0], 1),  # more rows
    ],
)
def test_match(new: list[list[int]], rows: list[int] | None, keep: int) -> None:
    got_rows, got_keep = prefix.match(OLD, torch.tensor(new))
    assert got_keep == keep
    assert (None if got_rows is None else got_rows.tolist()) == rows


def test_match_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randint(0, 3, (9, 12), generator=generator)
    new = torch.cat([old[torch.randperm(9, generator=generator)], torch.zeros(9, 1, dtype=torch.long)], 1)
    expected = prefix.match(old, new)
    monkeypatch.setattr(prefix, "_CHUNK", 1)
    got = prefix.match(old, new)
    assert got[0].tolist() == expected[0].tolist() and got[1] == expected[1] == 12


def test_rows_that_differ_in_padding_only_do_not_match() -> None:
    ids = torch.tensor([[0, 3, 4]])
    padded = prefix.keys(ids, torch.tensor([[0, 1, 1]]))
    assert prefix.match(prefix.keys(ids, None), padded) == (None, 0)


def test_leading_run() -> None:
    ids = torch.tensor([[0, 0, 3, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    assert prefix.leading_run(ids, 0).tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]
