"""Members whose tokens are units go on in a lane, in tensors alone: what they say is what they say of the whole text."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from unit_members import cutters_of, members, models_of

from hf_eft.units import read_in_units

PAIR = "bytes: small in base"
ALL: dict[str, Any] = {"covers": None, "threshold": 0.0}
# The ids of the base: pad 0, begin 1, end 2, a 3, b 4, ab 5, aba 6, bb 7. The units: a, b, ab.
PROMPTS = torch.tensor([[1, 3, 5, 6, 7, 3, 5, 4, 3], [0, 0, 1, 4, 5, 3, 4, 4, 5]])
WRITTEN = torch.tensor([[3, 4, 5, 3, 5, 4, 4, 3], [5, 5, 4, 3, 3, 4, 5, 4]])


@pytest.fixture
def tuned() -> Any:
    return copy.deepcopy(members(PAIR, **ALL)["tuned"])


class Text:
    """Rows that a member reads step by step, and what it says of all of it at once."""

    def __init__(self, member: Any, prompts: torch.Tensor = PROMPTS) -> None:
        self.member, self.cache, self.ids = member, DynamicCache(), prompts[:, :0]
        self.prompt = prompts.shape[1]
        self.read(prompts)

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        keep = 0 if self.ids.shape[1] else 1  # what is read before the logits that are kept is a prompt
        self.ids = torch.cat([self.ids, ids], dim=1)
        mask = self.ids != 0
        out = self.member(input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, logits_to_keep=keep)
        return out.logits[:, -1]

    def back(self, count: int) -> None:
        self.cache.crop(-count)
        self.ids = self.ids[:, :-count]

    def anew(self) -> torch.Tensor:
        """By a copy of the member, which knows nothing of these rows: the prompt, and what is behind it in one piece."""
        other, cache = copy.deepcopy(self.member), DynamicCache()
        seen = self.ids != 0
        for part in (slice(0, self.prompt), slice(self.prompt, None)):
            ids = self.ids[:, part]
            if ids.shape[1]:
                keep = 0 if part.start else 1
                mask = seen[:, : part.stop]
                out = other(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=keep)
        return out.logits[:, -1]

    @property
    def lane(self) -> Any:
        written = self.member._written.value
        return None if written is None else written.lane

    def check(self, said: torch.Tensor, has_begun: bool = True) -> None:
        assert (self.lane is not None and self.lane.has_begun) == has_begun
        torch.testing.assert_close(said.log_softmax(-1), self.anew().log_softmax(-1), atol=1e-5, rtol=1e-5)


def test_every_step(tuned: Any) -> None:
    text = Text(tuned)
    for column in WRITTEN.T:
        before = tuned.cost.forwards
        text.check(text.read(column[:, None]))
        assert tuned.cost.forwards == before + 1 and not any(map(any, tuned.missing))


@pytest.mark.parametrize("back", [1, 3, 5])
def test_what_is_taken_back_need_not_be_read_again(tuned: Any, back: int) -> None:
    text = Text(tuned)
    for column in WRITTEN.T:
        text.read(column[:, None])
    text.back(back)
    before = tuned.cost.forwards
    said = text.read(torch.tensor([[5], [5]]))  # which neither row had there
    assert tuned.cost.forwards == before + 1  # from a state of the lane, not from the prompt
    text.check(said, has_begun=False)
    text.check(text.read(WRITTEN[:, 1:2]))


def test_several_at_once_and_rows_in_another_order(tuned: Any) -> None:
    text = Text(tuned)
    for column in WRITTEN[:, :3].T:
        text.read(column[:, None])
    text.check(text.read(WRITTEN[:, 3:6]), has_begun=False)
    text.check(text.read(WRITTEN[:, 6:7]))
    text.cache.reorder_cache(torch.tensor([1, 0]))
    text.ids = text.ids.flip(0)
    text.check(text.read(WRITTEN[:, 7:]), has_begun=False)
    alike = Text(tuned, PROMPTS[:1].repeat(2, 1))
    alike.read(torch.tensor([[3], [5]]))
    alike.cache.reorder_cache(torch.tensor([1, 0]))
    alike.ids = alike.ids.flip(0)
    alike.check(alike.read(torch.tensor([[4], [4]])), has_begun=False)


def test_a_model_with_two_ends() -> None:
    """What it says of the end is a sum, in a lane as elsewhere."""
    small, cutter = copy.deepcopy(models_of(PAIR)), cutters_of(PAIR)["tuned"]
    small["tuned"].generation_config.eos_token_id = [cutter.eos_token_id, cutter.bos_token_id]
    text = Text(read_in_units(small, cutters_of(PAIR), **ALL)["tuned"])
    one = Text(members(PAIR, **ALL)["tuned"])
    for column in WRITTEN[:, :3].T:
        said, by_one = text.read(column[:, None]).log_softmax(-1), one.read(column[:, None]).log_softmax(-1)
        text.check(said)
        assert (said[:, 2] > by_one[:, 2] + 1e-3).all()


def test_a_row_that_ends_and_an_id_of_several_units(tuned: Any) -> None:
    text = Text(tuned)
    text.read(WRITTEN[:, :1])
    ended = torch.tensor([[2], [5]])
    text.check(text.read(ended))
    said = text.read(torch.tensor([[3], [3]]))  # nothing is known of what follows an end
    text.check(said)
    assert said[0].isfinite().any() and said[0][said[0].isfinite()].unique().numel() == 1
    text.check(text.read(torch.tensor([[2], [6]])), has_begun=False)  # `aba` is `ab a`


def test_a_token_that_the_model_rules_out(tuned: Any) -> None:
    """Nothing is known of what follows it, and of other rows all is."""
    ruled_out = cutters_of(PAIR)["tuned"].convert_tokens_to_ids("b")

    def rule_out(_model: Any, _inputs: Any, out: Any) -> Any:
        out.logits[..., ruled_out] = -torch.inf
        return out

    tuned.model.register_forward_hook(rule_out)
    text = Text(tuned)
    text.read(torch.tensor([[3], [3]]))
    said = text.read(torch.tensor([[4], [5]]))
    text.check(said)
    assert [row[row.isfinite()].unique().numel() == 1 for row in said] == [True, False]


def test_states_that_were_freed_meanwhile(tuned: Any) -> None:
    """As by a call of another thread, or by weights that were changed in place."""
    text = Text(tuned)
    for column in WRITTEN[:, :3].T:
        text.read(column[:, None])
    thread = threading.Thread(target=lambda: Text(tuned, PROMPTS.flip(0)))
    thread.start()
    thread.join()
    text.check(text.read(WRITTEN[:, 3:4]), has_begun=False)
    text.read(WRITTEN[:, 4:5])
    with torch.no_grad():
        tuned.double()
        for weight in tuned.model.parameters():
            weight.mul_(1.5)
    text.check(text.read(WRITTEN[:, 5:6]), has_begun=False)


def test_a_forward_that_fails_leaves_nothing_half_read(tuned: Any) -> None:
    text = Text(tuned)
    text.read(WRITTEN[:, :1])
    bias = tuned.model.lm_head.weight[3].clone()
    with torch.no_grad():
        tuned.model.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError):
        text.read(WRITTEN[:, 1:2])
    with torch.no_grad():
        tuned.model.lm_head.weight[3] = bias
    text = Text(tuned)
    text.check(text.read(WRITTEN[:, 1:2]))
