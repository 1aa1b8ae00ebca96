"""Strength by phase in compiled graphs: the tokens of plain decoding, and no graph for a phase of its own."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from random_cases import double
from transformers import CompileConfig

from hf_eft import Combination, EFTForCausalLM, Phase

RECIPE = Combination.emulate(alpha={"think": 1.2, "answer": 0.3}, phases=[Phase("think", [10], [11, 12], budget=4)])


def compiled() -> dict[str, Any]:
    """Compiled on a CPU: "eager" traces and guards as any other does, and needs no C++ compiler."""
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def thinking() -> tuple[EFTForCausalLM, dict[str, Any]]:
    """Members, and two rows padded on the left that think already."""
    members = [double(family, seed) for seed, family in enumerate(("llama", "qwen3", "qwen3"))]
    inputs: dict[str, Any] = families.prompts("left")
    inputs["input_ids"][0, -1], inputs["input_ids"][1, -2] = 10, 10
    model = EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2], combination=RECIPE)
    return model, {**inputs, "eos_token_id": None}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_assistant_tokens": 3},
        pytest.param({"coupling": "match", "seed": 3, "do_sample": True}, marks=pytest.mark.nightly),
    ],
    ids=["greedy", "drafts", "match"],
)
def test_compiled_steps_follow_phases(how: dict[str, Any]) -> None:
    torch.compiler.reset()
    model, inputs = thinking()
    options = {**how, **({"assistant_model": model.tuned} if "num_assistant_tokens" in how else {})}
    plain = {name: value for name, value in how.items() if name != "num_assistant_tokens"}
    graphs = []
    for tokens in (12, 9):
        torch._dynamo.utils.counters.clear()
        got = model.generate(**inputs, **options, max_new_tokens=tokens, **compiled())
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        expected = model.generate(**inputs, **plain, max_new_tokens=tokens)
        assert got.tolist() == expected.tolist()
        assert "11, 12" in str(expected[0, -tokens:].tolist())  # the budget ends the thought on the way
    assert 1 <= graphs[0] <= 3 and graphs[1:] == [0]
    weaker = model.generate(**inputs, **plain, max_new_tokens=12, coefficients=torch.tensor([[1.0, 0.3, -0.3]] * len(got)))
    assert weaker.tolist() != model.generate(**inputs, **plain, max_new_tokens=12).tolist()
    torch.compiler.reset()
