"""How a model is tried before it is a member: it is told positions as `generate` tells them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_eft.members.trial import _difference, _ends, _read


class Told:
    """A model that notes the positions that it is told."""

    def __init__(self) -> None:
        self.positions: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **inputs: Any) -> Any:
        self.positions += position_ids.tolist()
        return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids, 9).float())

    __call__ = forward


def test_positions_count_from_the_first_token_that_is_no_padding() -> None:
    model, ids = Told(), torch.tensor([[3, 4, 5, 6]])
    logits = _read(model, ids, padding=2, pieces=[3, 1], cache=None)
    assert model.positions == [[0, 0, 0, 1, 2], [3]]
    assert logits.argmax(-1).tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("kind", [AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError])
def test_a_model_that_ends_in_an_error_cannot_read_so(kind: type[Exception]) -> None:
    def fails() -> torch.Tensor:
        raise kind("no such shape")

    assert _ends(fails) == (None, f"it ends in {kind.__name__} (no such shape)")


def test_memory_that_runs_out_says_nothing_of_a_model() -> None:
    def fails() -> torch.Tensor:
        raise torch.OutOfMemoryError("none left")

    with pytest.raises(torch.OutOfMemoryError):
        _ends(fails)


def off(by: float, where: slice | list[int], dtype: torch.dtype) -> str | None:
    """What is said of logits of 12 positions that are off by a share of their spread at some."""
    alone = torch.randn(12, 500, generator=torch.Generator().manual_seed(0))
    read = alone.clone()
    read[where] += by * torch.randn(12, 500, generator=torch.Generator().manual_seed(1))[where]
    model: Any = SimpleNamespace(dtype=dtype)
    return _difference(model, alone, lambda: read)


def test_rounding_is_told_from_what_is_read_wrongly() -> None:
    every = slice(None)
    assert off(0.05, every, torch.bfloat16) is None
    assert off(0.5, every, torch.bfloat16) == "its logits are off by 51% of their spread"
    for dtype in (torch.float32, torch.float64):
        assert off(0.001, every, dtype) is None
        assert off(0.05, every, dtype) == "its logits are off by 5% of their spread"


def test_what_is_wrong_at_the_end_only_is_seen() -> None:
    """The last three are read one by one: most of them, or most of the others, must be wrong."""
    for wrong in ([9, 10, 11], [9, 11], [10, 11], [*range(5)]):
        assert off(0.5, wrong, torch.float32), wrong
    for few in ([11], [0, 5], [*range(4)]):
        assert off(0.5, few, torch.float32) is None, few
