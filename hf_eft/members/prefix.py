"""What of the tokens read before can serve the tokens asked for now? Pure functions of ids."""

from __future__ import annotations

import torch

PADDING = -1  # no token has this id: rows that differ in padding only do not match

_CHUNK = 2**26  # comparisons at a time: bounds the memory when many rows are matched with many


def keys(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """What identifies a read prefix: its ids, padding marked. Both `(rows, length)`."""
    return input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, PADDING)


def match(old: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    r"""
    Find for each new row the old row with which it shares the longest prefix.

    Args:
        old (`torch.LongTensor` of shape `(old rows, old length)`): Keys of the tokens that were read.
        new (`torch.LongTensor` of shape `(new rows, new length)`): Keys of the tokens that are asked for.

    Returns:
        `tuple[torch.Tensor | None, int]`: The old row for each new row (`None` if every row stays where it is), and how
        many tokens *all* new rows share with theirs.
    """
    shared = min(old.shape[1], new.shape[1])
    old, new = old[:, :shared], new[:, :shared]
    if old.shape == new.shape and torch.equal(old, new):
        return None, shared
    if (found := _whole(old, new)) is not None:
        return found, shared
    rows, lengths = [], []
    for chunk in new.split(max(1, _CHUNK // max(1, old.numel()))):
        differs = chunk[:, None, :] != old[None, :, :]  # (rows, old rows, shared)
        length = torch.where(differs.any(-1), differs.to(torch.int8).argmax(-1), shared)  # (rows, old rows)
        rows.append(length.argmax(-1))
        lengths.append(length.amax(-1))
    row = torch.cat(rows)
    keep = int(torch.cat(lengths).min())
    if old.shape[0] == new.shape[0] and torch.equal(old[:, :keep], new[:, :keep]):
        return None, keep  # duplicates among the old rows: any of them would do, so none has to move
    return row, keep


def _whole(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor | None:
    """
    The old row that is each new one, the first of several, where there is one for all: as when beams move. Candidates are found by a number
    for each row and then compared, rather than each row with each, whose cost would be felt in long texts.
    """
    weights = torch.arange(1, old.shape[1] + 1, device=old.device) * 0x9E3779B97F4A7C1 | 1  # any odd numbers, which differ
    first: dict[int, int] = {}
    for row, number in enumerate((old * weights).sum(-1).tolist()):
        first.setdefault(number, row)
    rows = [first.get(number) for number in (new * weights).sum(-1).tolist()]
    if None in rows:
        return None
    found = torch.tensor(rows, device=old.device)
    return found if torch.equal(old[found], new) else None


def leading_run(input_ids: torch.Tensor, token: int) -> torch.Tensor:
    """1 for the leading run of `token` in each row, 0 after it; a row of nothing else keeps its last. `(rows, length)`."""
    run = (input_ids == token).long().cumprod(-1)
    run[:, -1] = 0
    return run
