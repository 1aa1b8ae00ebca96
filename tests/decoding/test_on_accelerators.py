"""On an accelerator, where there is one: steps and drafts on static caches, compiled and replayed as graphs, and everything around them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS, adapted
from families import prompts
from random_cases import double, random_case
from transformers import CompileConfig

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.decoding.speculative import graphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here")

POOL = ("llama", "mistral", "gemma3", "gpt2", "gpt_neox")


def moved(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {key: moved(each, device) for key, each in value.items()}
    return value.to(device) if isinstance(value, (torch.Tensor, torch.nn.Module)) else value


def case(number: int) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]:
    model, inputs, options, how = random_case(number, pool=POOL)
    for member in model.members.values():
        member.to("cuda")
    return model, moved(inputs, "cuda"), moved(options, "cuda"), moved(how, "cuda")


@pytest.mark.parametrize("number", range(12))
def test_random_cases_replayed_as_graphs(number: int) -> None:
    model, inputs, options, how = case(number)
    expected = model.generate(**inputs, **options).tolist()
    assert model.generate(**inputs, **options, **how).tolist() == expected
    torch.compiler.reset()
    static = {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager", mode=None)}
    for _ in range(2):
        assert model.generate(**inputs, **options, **how, **static).tolist() == expected


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=str)
def test_random_cases_of_plain_decoding_replayed(number: int, options: dict[str, Any]) -> None:
    """By the rows' own prompts and coefficients, in batches; members of every kind, of which those with a window are not recorded."""
    model, inputs, given, _ = case(number)
    given = {
        name: value for name, value in given.items() if name not in ("coupling", "seed", "do_sample", "num_return_sequences")
    }
    answers = []
    torch.compiler.reset()
    static = {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager", mode=None)}
    for how in ({}, static, static):
        torch.manual_seed(number)
        answers.append(model.generate(**inputs, **given, **options, **how).tolist())
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("tuned", ["model", pytest.param("adapter", marks=PEFT_SAYS)])
def test_every_plain_step_is_replayed(tuned: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens would be the same without."""
    torch.compiler.reset()
    small = [adapted("lora")[0]] if tuned == "adapter" else [double("gpt2", 1), double("gpt2", 2)]
    model = EFTForCausalLM.from_models(double("llama", 0).to("cuda"), *(each.to("cuda") for each in small))
    calls, run = [], graphs.Recorded.__call__
    monkeypatch.setattr(graphs.Recorded, "__call__", lambda self, inputs: (calls.append(1), run(self, inputs))[1])
    static = {"cache_implementation": "static", "compile_config": CompileConfig(backend=backend, mode=None)}
    model.generate(**moved(dict(prompts("left")), "cuda"), max_new_tokens=12, **static)
    assert len(calls) == 11


def test_threads_record_at_one_time() -> None:
    members = [double("llama", 0).to("cuda"), double("gpt2", 1).to("cuda"), double("gpt2", 2).to("cuda")]
    model = EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2])
    inputs = moved(dict(prompts("left")), "cuda")
    expected = model.generate(**inputs, max_new_tokens=24).tolist()
    static = {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager", mode=None)}
    model.generate(**inputs, max_new_tokens=24, **static)  # compiled; what follows is recorded only

    def answers(_: int) -> list[Any]:
        return [model.generate(**inputs, max_new_tokens=24, **static).tolist() for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        assert all(each == expected for found in pool.map(answers, range(2)) for each in found)


@pytest.mark.parametrize("number", [1, 4])
def test_random_cases_compiled(number: int) -> None:
    model, inputs, options, how = case(number)
    torch.compiler.reset()
    expected = model.generate(**inputs, **options).tolist()
    for _ in range(2):
        assert model.generate(**inputs, **options, **how, cache_implementation="static").tolist() == expected


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "coupling": "match", "seed": 3}], ids=str)
def test_the_same_tokens_as_on_the_cpu(options: dict[str, Any]) -> None:
    members = [double("llama", 0), double("gpt2", 1), double("gpt2", 2)]
    answers = []
    for device in ("cpu", "cuda"):
        for member in members:
            member.to(device)
        model = EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2])
        inputs = moved(dict(prompts("left")), device)
        answers.append(model.generate(**inputs, max_new_tokens=12, **options).tolist())
        if "coupling" not in options:
            add_on = EFTLogitsProcessor(members[1], members[2], attention_mask=inputs["attention_mask"])
            answers.append(members[0].generate(**inputs, max_new_tokens=12, logits_processor=[add_on], **options).tolist())
    assert all(answer == answers[0] for answer in answers)


def test_what_is_not_finite_is_named_and_the_accelerator_lives() -> None:
    members = [double("llama", 0).to("cuda"), double("llama", 1).to("cuda"), double("gpt2", 5).to("cuda")]
    model = EFTForCausalLM.from_models(members[0], tuned=members[1], reference=members[2])
    weight = members[2].lm_head.weight
    kept = weight.detach().clone()
    inputs = moved(dict(prompts("left")), "cuda")
    try:
        with torch.no_grad():
            weight[3] = torch.nan
        for extra in ({}, {"do_sample": True}):
            with pytest.raises(FloatingPointError, match="'reference'"):
                model.generate(**inputs, max_new_tokens=8, assistant_model=model.tuned, **extra)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    model.generate(**inputs, max_new_tokens=8, do_sample=True, assistant_model=model.tuned)
