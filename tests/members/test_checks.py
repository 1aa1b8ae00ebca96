"""What is refused before and after a member's step, piece by piece."""

from __future__ import annotations

import math

import pytest
import torch
from families import build, prompts, shared

from hf_eft import EFTForCausalLM
from hf_eft.members import checks
from hf_eft.members.checks import check_finite, check_model, check_static

NAN, INF = math.nan, math.inf


def rows(*tops: list[float]) -> torch.Tensor:
    """Logits, `(rows, positions, 3)`, of which the first token's are given."""
    logits = torch.zeros(len(tops), len(tops[0]), 3)
    logits[..., 0] = torch.tensor(tops)
    return logits


def test_what_stands_at_padding_is_nobodys_business() -> None:
    logits = rows([0.0, 0.0], [NAN, 0.0])
    check_finite(logits, "tuned", torch.tensor([[1, 1], [0, 1]]))
    check_finite(logits, "tuned", torch.tensor([[0, 1, 1], [1, 0, 1]]))  # the first column is cached
    for mask in (None, torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 1, 2, 2), torch.zeros(1, 2), torch.zeros(2, 1)):
        with pytest.raises(FloatingPointError, match=r"'tuned' .*maximum is nan\) in row 1, at position -2 from the end"):
            check_finite(logits, "tuned", mask)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_row_that_is_no_distribution_is_named(value: float) -> None:
    with pytest.raises(FloatingPointError, match=rf"maximum is {value}\) in row 0, at position -1 from"):
        check_finite(rows([0.0, value], [value, 0.0]), "base")
    with pytest.raises(FloatingPointError, match=r"maximum is -inf\)"):
        check_finite(torch.full((1, 1, 3), -INF), "base")
    check_finite(rows([-INF, 0.0]), "base")


@pytest.mark.parametrize("when", [1, 6])
def test_an_error_of_a_member_is_its_own(when: int) -> None:
    """Only where it reads several tokens behind others, or from a static cache, may what it cannot do be the cause."""
    tuned = build("gpt2", 1)

    def fails(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if kwargs["input_ids"].shape[1] == when:
            raise KeyError("its own")

    tuned.register_forward_pre_hook(fails, with_kwargs=True)
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=tuned, reference=shared("gpt2", 2))
    assert prompts("one")["input_ids"].shape[1] == 6
    with pytest.raises(KeyError, match="its own"):
        model.generate(**prompts("one"), max_new_tokens=3)
    with pytest.raises(ValueError, match=r"'tuned'.*cannot read from a static cache: it ends in KeyError"):
        model.generate(**prompts("one"), max_new_tokens=3, cache_implementation="static")


@pytest.mark.parametrize("kind", [AttributeError, KeyError, TypeError, ValueError, RuntimeError])
def test_configurations_that_no_cache_is_made_from_are_refused(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def refuses(*args: object, **options: object) -> None:
        raise kind("no such layer")

    for cache in ("DynamicCache", "StaticCache"):
        monkeypatch.setattr(checks, cache, refuses)
    model = shared("gpt2", 1)
    for call, words in (
        (lambda: check_model("tuned", model), "has a configuration that no cache can be made from"),
        (lambda: check_static({"tuned": model}), "has layers whose states no static cache holds"),
    ):
        refused = kind is not RuntimeError  # which says that something is broken, not that something cannot be
        with pytest.raises(ValueError if refused else RuntimeError) as caught:
            call()
        assert not refused or (
            f"'tuned' (GPT2LMHeadModel) {words}" in str(caught.value) and "no such layer" in str(caught.value)
        )


def test_logits_of_some_members_are_moved_to_the_main_one_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    members = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gpt2", 1), reference=shared("gpt2", 2))._members
    logits = {"tuned": torch.zeros(1, 1, 64), "reference": torch.zeros(1, 1, 64, device="meta")}
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # what is elsewhere has no values to look at
    assert {name: each.device.type for name, each in members.by_name({"reference": logits["reference"]}).items()} == {
        "reference": "meta"
    }
    got = members.by_name({**logits, "base": torch.zeros(1, 1, 64, device="meta")})
    assert {name: each.device.type for name, each in got.items()} == dict.fromkeys(("base", "tuned", "reference"), "meta")
