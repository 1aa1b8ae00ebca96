"""What is done the faster way of two to the same result. No result tells the ways apart, so what runs is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS, adapted
from families import prompts, shared
from tape import static
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


def test_members_on_static_caches_go_on_in_one_pass() -> None:
    eft, read = stacked(), []
    expected = eft.generate(**prompts("left"), max_new_tokens=6)
    models: dict[str, Any] = {**eft._members.distinct_models, "both": eft._members.stacks[0].member.model}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda m, a, k, n=name: read.append(n), with_kwargs=True)
    for _ in range(2):  # the second call has the cache of the first
        read.clear()
        assert torch.equal(eft.generate(**prompts("left"), max_new_tokens=6, cache_implementation="static"), expected)
        assert read == ["both"] * 6


@pytest.mark.parametrize("drafter", ["small combination", "reference"])
def test_members_that_draft_on_static_caches_share_a_pass_if_they_read_the_same(drafter: str) -> None:
    # (At strength 1 the reference has no say in drafts.)
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=adapted()[0], alpha=0.5)
    expected, read = model.generate(**prompts("left"), max_new_tokens=12), []
    both, alone = model._members.stacks[0].member.model, (model.tuned, model.reference)
    for name, each in (("both", both), ("alone", alone[0]), ("alone", alone[1])):
        each.register_forward_pre_hook(lambda m, a, k, n=name: read.append(n), with_kwargs=True)
    assistant = model.small_combination if drafter == "small combination" else model.reference
    for _ in range(2):  # in the first call each of them is tried
        read.clear()
        got = model.generate(
            **prompts("left"),
            max_new_tokens=12,
            cache_implementation="static",
            assistant_model=assistant,
            num_assistant_tokens=3,
        )
        assert torch.equal(got, expected)
    assert read[0] == "both" and set(read[1:]) == ({"both"} if drafter == "small combination" else {"alone"})


def test_one_pass_on_static_caches_is_one_graph() -> None:
    eft, products = stacked(), []
    expected = eft.generate(**prompts("left"), max_new_tokens=6)

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        products.append(sum("linear" in str(node.target) for node in graph.graph.nodes if node.op == "call_function"))
        return graph

    options = static()
    options["compile_config"].backend, options["compile_config"].fullgraph = backend, True
    torch.compiler.reset()
    for _ in range(2):
        got = eft.generate(**prompts("left"), max_new_tokens=6, **options)
        assert torch.equal(got, expected)
    trunk, low = eft.reference, [name for name, _ in eft.tuned.named_parameters() if ".lora_A." in name]
    assert products == [sum(type(module) is nn.Linear for module in trunk.modules()) + 2 * len(low)]
    torch.compiler.reset()
