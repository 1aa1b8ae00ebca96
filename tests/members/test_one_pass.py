"""What is done the faster way of two to the same result. No result tells the ways apart, so what runs is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS, adapted
from families import shared
from torch import nn

from hf_eft import Combination, EFTForCausalLM
from hf_eft.members.adapters.stack import _product
from hf_eft.members.member import Member
from hf_eft.members.members import Members

pytestmark = PEFT_SAYS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[nn.Linear]:
    """The linear layers that were called, rather than only read."""
    called: list[nn.Linear] = []
    forward = nn.Linear.forward

    def noted(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        called.append(self)
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", noted)
    return called


def stacked() -> EFTForCausalLM:
    """Two members over one model, without a base."""
    tuned, small = adapted()
    eft = EFTForCausalLM.from_models(None, tuned=tuned, reference=small, combination=Combination.interpolate(0.5))
    assert [stack.names for stack in eft._members.stacks] == [("tuned", "reference")]
    return eft


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape, few",
    [((1, 1), False), ((2, 1), True), ((1, 2), True), ((4, 1), True), ((2, 2), True), ((5, 1), False), ((2, 3), False)],
)
@torch.no_grad()
def test_two_to_four_rows_take_the_transposed_product(
    shape: tuple[int, int], few: bool, bias: bool, asked: list[nn.Linear]
) -> None:
    linear, x = nn.Linear(32, 8, bias=bias), torch.randn(*shape, 32, generator=torch.Generator().manual_seed(0))
    got = _product(linear, x)
    assert bool(asked) != few
    torch.testing.assert_close(got, linear(x))
    asked.clear()
    _product(linear.to(torch.bfloat16), x.to(torch.bfloat16))  # no such gain is known of other dtypes
    assert asked == [linear]


@torch.no_grad()
def test_layers_without_adapters_take_it_too(asked: list[nn.Linear]) -> None:
    eft = stacked()
    eft(torch.tensor([[5]]))
    assert asked and all(4 in (layer.in_features, layer.out_features) for layer in asked)  # the low-rank parts alone


def test_a_long_text_is_gone_on_with_in_one_pass() -> None:
    eft, read = stacked(), []
    models: dict[str, Any] = {**eft._members.distinct_models, "both": eft._members.stacks[0].member.model}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda m, a, k, n=name: read.append((n, k["input_ids"].shape[1])), with_kwargs=True)
    ids = torch.randint(3, 64, (1, 300), generator=torch.Generator().manual_seed(0))
    eft.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert read == [("both", 300), ("both", 1), ("both", 1), ("both", 1)]


def test_members_on_accelerators_begin_before_those_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    members = Members({name: shared("llama", seed) for seed, name in enumerate(("base", "tuned", "reference"))})
    places, begun = {"base": "cpu", "tuned": "cuda", "reference": "xpu"}, []
    monkeypatch.setattr(Member, "device", property(lambda member: torch.device(places[member.name])))
    monkeypatch.setattr(Member, "forward", lambda member, **given: begun.append(member.name))
    members.step(torch.tensor([[5]]))
    assert begun == ["tuned", "reference", "base"]
