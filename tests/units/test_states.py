"""Where states lie: rows read on where they are while that is the least work, and are moved as they are."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig

from hf_eft.spelling.lexicon import grouped_log_sum
from hf_eft.spelling.states import Batch, Place, together

CONFIG = LlamaConfig(num_hidden_layers=2)
LAYERS, HEADS, SIZE = 2, 3, 4


def batch_of(rows: int, columns: int) -> Batch:
    cache = DynamicCache(config=CONFIG)
    for layer in range(LAYERS):
        cache.update(*(torch.randn(rows, HEADS, columns, SIZE) for _ in ("keys", "values")), layer)
    return Batch(cache, rows, columns)


def place(batch: Batch, row: int, length: int) -> Place:
    return Place(batch, row, length, ((batch.columns - length, batch.columns),), (None,) * LAYERS)


@pytest.mark.parametrize(("weights", "stays"), [(0, True), (500, True), (10**6, False)])
def test_few_rows_stay_where_moving_them_is_more_work_than_what_is_read_in_vain(weights: int, stays: bool) -> None:
    batch = batch_of(12, 10)
    few = [place(batch, row, 10 - row) for row in (3, 1)]
    found, rows, spans = together(few, CONFIG, pads=True, weights=weights)
    assert (found is batch) == stays and spans == [((3, 10),), ((1, 10),)]
    assert rows == ([3, 1] if stays else [0, 1])
    for mine, (row, layer) in zip(rows, ((3, 0), (1, 1)), strict=True):
        assert torch.equal(found.cache.layers[layer].keys[mine], batch.cache.layers[layer].keys[row])


def test_half_of_the_rows_stay_whatever_the_model() -> None:
    batch = batch_of(4, 6)
    found, rows, _ = together([place(batch, row, 6) for row in (2, 0)], CONFIG, pads=True, weights=10**9)
    assert found is batch and rows == [2, 0]


@pytest.mark.parametrize("rows", [(0, 1), (2, 2)], ids=["far shorter than the others", "twice one row"])
def test_rows_move_where_they_cannot_stay(rows: tuple[int, int]) -> None:
    batch = batch_of(12, 40)
    length = 5 if rows == (0, 1) else 40
    found, at, spans = together([place(batch, row, length) for row in rows], CONFIG, pads=True, weights=0)
    assert found is not batch and at == [0, 1]
    for i, row in enumerate(rows):
        for layer, before in zip(found.cache.layers, batch.cache.layers, strict=True):
            start, end = spans[i][0]
            assert torch.equal(layer.values[i, :, start:end], before.values[row, :, 40 - length :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_log_of_sums_by_group(dtype: torch.dtype) -> None:
    counts = [1, 4, 2, 30, 3]
    values = (
        torch.randn(6, sum(counts), dtype=dtype) * 40 - 300
    )  # what underflows, if it is not taken relative to its own group
    values[2, 1:5] = -torch.inf  # a group of which nothing has a probability
    values[3, 6] = -torch.inf
    expected = torch.stack([part.logsumexp(-1) for part in values.split(counts, dim=1)], dim=1)
    assert torch.allclose(grouped_log_sum(values, torch.tensor(counts)), expected, rtol=1e-6)
    assert expected[2, 1] == -torch.inf
