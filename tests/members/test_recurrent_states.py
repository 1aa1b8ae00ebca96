"""Recurrent states piece by piece: with and without a cache, marked and put back, recorded, and gone on from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import prompts, shared
from transformers import DynamicCache

from hf_eft.members.members import Members
from hf_eft.members.recurrent import is_recurrent, records
from hf_eft.members.roll_back import Mark, goes_on


def has_read(family: str, ids: torch.Tensor) -> tuple[Any, Any]:
    """A model's step, and a cache in which it has read."""
    members = Members({"tuned": shared(family, 1)})
    cache = members.new_cache()
    members.step(ids, cache=cache, use_cache=True)

    def read(other: Any, ids: torch.Tensor) -> Any:
        return members.distinct["tuned"].forward(
            input_ids=ids, inputs_embeds=None, attention_mask=None, position_ids=None, cache=other, use_cache=True,
            logits_to_keep=1, extra={},
        ).logits[:, -1]  # fmt: skip

    return read, cache


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@torch.no_grad()
def test_nothing_is_kept_where_nobody_asks_for_it(family: str) -> None:
    model, ids = shared(family, 1), prompts("even")["input_ids"]
    members, expected = Members({"tuned": model}), model(ids, use_cache=False).logits
    torch.testing.assert_close(members.step(ids)["tuned"].logits, expected)
    torch.testing.assert_close(members.step(ids, cache=members.new_cache(), use_cache=True)["tuned"].logits, expected)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "qwen3_5"])
@torch.no_grad()
def test_marked_states_follow_their_rows(family: str) -> None:
    ids = prompts("left")["input_ids"]
    read, cache = has_read(family, ids)
    rows = torch.tensor([2, 0, 2])
    mark = Mark(cache)
    states = [{n: each.clone() for n, each in layer.recurrent_states.items()} for layer in cache.layers if is_recurrent(layer)]
    cache.reorder_cache(rows)
    mark.select(rows)
    read(cache, ids[rows, :1])
    mark.put_back(cache)
    for layer, before in zip(filter(is_recurrent, cache.layers), states, strict=True):
        for n, each in before.items():
            assert torch.equal(layer.recurrent_states[n], each[rows])


@pytest.mark.parametrize(
    ("family", "recording"),
    [("lfm2", [True, False]), ("mistral", [True, True]), ("llama", [False, False]), ("mamba2", [False, False])],
)
@torch.no_grad()
def test_windows_and_convolutions_without_states_are_recorded(family: str, recording: list[bool]) -> None:
    _, cache = has_read(family, prompts("even")["input_ids"])
    assert [records(layer) for layer in cache.layers] == recording


@pytest.mark.parametrize(("family", "at_once"), [("mamba", False), ("mamba2", True), ("falcon_h1", True), ("jamba", False)])
@torch.no_grad()
def test_whether_a_model_goes_on_is_seen_by_what_it_does(family: str, at_once: bool) -> None:
    ids = prompts("even")["input_ids"]
    _, cache = has_read(family, ids[:, :4])
    before = Mark(cache)._states
    model: Any = torch.nn.Module()  # not the model itself, of which it may be known already
    assert goes_on(model, lambda other: shared(family, 1)(ids[:, 4:], **{_cache_argument(family): other}), cache) == at_once
    after = Mark(cache)._states
    for layer, kinds in before.items():
        for kind, states in kinds.items():
            assert all(torch.equal(each, after[layer][kind][n]) for n, each in states.items() if each is not None)
    assert not goes_on(torch.nn.Module(), lambda other: None, DynamicCache())  # no states there


def _cache_argument(family: str) -> str:
    from hf_eft.members.member import Member

    return Member.of("tuned", shared(family, 1)).cache_argument
