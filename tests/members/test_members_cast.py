"""A combination that is cast or moved takes its members along."""

from __future__ import annotations

import pytest
import torch
from adapted import adapted
from families import build, prompts

from hf_eft import EFTForCausalLM


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("with_adapter", [False, True])
def test_casting_a_combination_casts_every_member(with_adapter: bool) -> None:
    small = {"tuned": adapted()[0]} if with_adapter else {"tuned": build("gpt2", 1), "reference": build("gpt2", 2)}
    model = EFTForCausalLM.from_models(build("llama", 0), **small)
    expected = model(**prompts("left")).logits
    model.to(torch.float64)
    assert {each.dtype for each in model.member_logits(**prompts("left")).values()} == {torch.float64}
    torch.testing.assert_close(model(**prompts("left")).logits, expected, atol=1e-3, rtol=1e-3)
