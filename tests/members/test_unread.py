"""What members that were left out have missed: it moves as their states move, and is read before what follows."""

from __future__ import annotations

import copy

import pytest
import torch
from families import PAD, shared
from transformers import DynamicCache

from hf_eft.members.cache import EFTCache
from hf_eft.members.members import Members
from hf_eft.members.unread import Unread

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
PLACES = torch.arange(6)[None]


def trio() -> Members:
    return Members({"base": shared("llama", 0), "tuned": shared("qwen3", 1), "reference": shared("mistral", 2)})


def late(members: Members, read: int = 2, missed: int = 3, said: bool = True) -> EFTCache:
    """A cache whose small members have missed the tokens after the first `read`."""
    cache = members.new_cache()
    if read:
        members.step(IDS[:, :read], position_ids=PLACES[:, :read], cache=cache, use_cache=True)
    for n in range(read, read + missed):
        ids, places = IDS[:, n : n + 1], PLACES[:, n : n + 1]
        members.step(ids, position_ids=places, cache=cache, use_cache=True, only=["base"])
        for name in ("tuned", "reference"):
            cache.leave_unread(name, ids, places if said else None)
    return cache


def whole(members: Members, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: each.logits for name, each in members.step(ids).items()}


def close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, logits in expected.items():
        torch.testing.assert_close(got[name], logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("keep", [0, 1, torch.tensor([0])])
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("read", [0, 2])
@torch.no_grad()
def test_it_is_read_before_what_follows(read: int, said: bool, keep: int | torch.Tensor) -> None:
    members = trio()
    cache = late(members, read=read, said=said)
    stop = read + 4
    places = PLACES[:, stop - 1 : stop]
    outputs = members.step(IDS[:, stop - 1 : stop], position_ids=places, cache=cache, use_cache=True, logits_to_keep=keep)
    close(
        {name: each.logits for name, each in outputs.items()}, {n: x[:, -1:] for n, x in whole(members, IDS[:, :stop]).items()}
    )
    assert not cache.unread and {int(each.get_seq_length()) for each in cache.members.values()} == {stop}


@torch.no_grad()
def test_only_those_that_are_asked_read_it() -> None:
    members = trio()
    cache = late(members)
    assert {name: cache.read_by(name, 0) for name in members.names} == {"base": 5, "tuned": 5, "reference": 5}
    members.step(IDS[:, 5:], position_ids=PLACES[:, 5:], cache=cache, use_cache=True, only=["tuned"])
    assert [int(each.get_seq_length()) for each in cache.members.values()] == [5, 6, 2] and list(cache.unread) == ["reference"]
    assert cache.seen_tokens == 5  # of the first member


@torch.no_grad()
def test_it_moves_with_the_rows() -> None:
    members, order = trio(), torch.tensor([1, 1, 0])
    for change in (lambda cache: cache.reorder_cache(order), lambda cache: cache.batch_select_indices(order)):
        cache = late(members)
        change(cache)
        ids = IDS[order]
        outputs = members.step(ids[:, 5:], position_ids=PLACES[:, 5:], cache=cache, use_cache=True)
        close({name: each.logits for name, each in outputs.items()}, {n: x[:, -1:] for n, x in whole(members, ids).items()})
    cache = late(members)
    cache.batch_repeat_interleave(2)
    assert cache.unread["tuned"].input_ids.tolist() == IDS[:, 2:5].repeat_interleave(2, 0).tolist()


@torch.no_grad()
def test_it_is_taken_back_first() -> None:
    members = trio()
    for back, left, read in ((0, 3, 2), (1, 2, 2), (3, 0, 2), (4, 0, 1)):
        cache = late(members)
        other = copy.deepcopy(cache)
        cache.crop(-back)
        assert [int(each.get_seq_length()) for each in cache.members.values()] == [5 - back, read, read]
        assert {each.count for each in cache.unread.values()} == ({left} if left else set())
        places = PLACES[:, 5 - back : 6 - back]
        outputs = members.step(IDS[:, 5:], position_ids=places, cache=cache, use_cache=True)
        text = torch.cat([IDS[:, : 5 - back], IDS[:, 5:]], dim=1)
        close({name: each.logits for name, each in outputs.items()}, {n: x[:, -1:] for n, x in whole(members, text).items()})
        assert {each.count for each in other.unread.values()} == {3}  # a copy has its own
    cache.reset()
    assert not cache.unread


@torch.no_grad()
def test_padding_that_a_member_has_no_row_for_is_not_looked_up() -> None:
    members = trio()
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[0, :3], mask[0, :3] = 99, 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    for then in (places[:, 4:], None):  # in one block, and apart
        cache = EFTCache.attach(DynamicCache(), members.distinct_models)
        given = {"attention_mask": mask[:, :4], "position_ids": places[:, :4], "cache": cache, "use_cache": True}
        members.step(ids[:, :4], **given, only=["base"])
        for name in ("tuned", "reference"):
            cache.leave_unread(name, ids[:, :4], places[:, :4])
        rest = {**given, "attention_mask": mask, "position_ids": then}
        outputs = members.step(ids[:, 4:], **rest)
        alone = members.step(torch.cat([ids[1:]]), position_ids=places[1:])
        close({n: x.logits[1:, -1:] for n, x in outputs.items()}, {n: x.logits[:, -1:] for n, x in alone.items()})
        if then is not None:
            alone = members.step(ids[:1, 3:], position_ids=places[:1, 3:])
            close({n: x.logits[:1, -1:] for n, x in outputs.items()}, {n: x.logits[:, -1:] for n, x in alone.items()})
    assert PAD == 0


def test_positions_of_one_row_and_of_several() -> None:
    one, two = torch.tensor([[0, 1]]), torch.tensor([[2], [1]])
    joined = Unread(IDS[:, :2], one).followed_by(IDS[:, 2:3], two)
    assert joined.input_ids.tolist() == IDS[:, :3].tolist() and joined.position_ids is not None
    assert joined.position_ids.tolist() == [[0, 1, 2], [0, 1, 1]] and joined.count == 3
    assert joined.select(torch.tensor([1])).position_ids.tolist() == [[0, 1, 1]]  # type: ignore[union-attr]
    assert joined.repeat(2).position_ids.tolist() == [[0, 1, 2]] * 2 + [[0, 1, 1]] * 2  # type: ignore[union-attr]
    assert Unread(IDS[:, :2], one).select(torch.tensor([0, 1, 0])).position_ids is one
    assert Unread(IDS[:, :2], one).repeat(3).position_ids is one and joined.without(3) is None
    assert joined.without(1).position_ids.tolist() == [[0, 1], [0, 1]]  # type: ignore[union-attr]
