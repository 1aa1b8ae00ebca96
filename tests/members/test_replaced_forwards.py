"""A model whose `forward` a trainer replaced, with an adapter: views of it run themselves, not what the replacement holds."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS
from families import build, lora

from hf_eft import EFTForCausalLM

pytestmark = [*PEFT_SAYS]
IDS = torch.tensor([[3, 4, 5, 6]])


def replaced(module_name: str) -> tuple[Any, Any]:
    """A model; and a copy with an adapter, whose `forward` calls the one before through a closure."""
    base = build("llama", 0)
    adapter = lora(copy.deepcopy(base))
    inner = adapter.get_base_model()
    before = inner.forward

    @functools.wraps(type(inner).forward)
    def forward(self: Any, *args: Any, fused: bool = False, **kwargs: Any) -> Any:
        return before(*args, **kwargs)

    told = {**globals(), "__name__": module_name}
    made = types.FunctionType(forward.__code__, told, "forward", None, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    inner.forward = types.MethodType(functools.wraps(type(inner).forward)(made), inner)
    return base, adapter


def test_the_reference_is_the_model_without_the_adapter_that_a_trainer_of_trl_left() -> None:
    base, adapter = replaced("trl.trainer.utils")
    with torch.no_grad():
        tuned, plain = adapter(IDS).logits, base(IDS).logits
        model = EFTForCausalLM.from_models(base, tuned=adapter)
        said = model.member_logits(IDS)
        torch.testing.assert_close(said["reference"], plain)
        torch.testing.assert_close(said["tuned"], tuned)
        torch.testing.assert_close(model(IDS).logits.log_softmax(-1), tuned.log_softmax(-1), atol=2e-4, rtol=0)
    assert "forward" in vars(adapter.get_base_model())  # the caller's model is left as it is
    assert float((tuned - plain).abs().max()) > 1


def test_another_one_is_refused_by_name() -> None:
    base, adapter = replaced("mine")
    with pytest.raises(ValueError, match=r"`forward` of LlamaForCausalLM was replaced by .*forward, which goes on to the same"):
        EFTForCausalLM.from_models(base, tuned=adapter)
