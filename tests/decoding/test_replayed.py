"""Plain decoding whose steps are recorded and replayed, by a stand-in for an accelerator: the tokens of steps that are not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS, adapted
from families import PAD, prompts
from random_cases import double, random_case
from tape import static, taped
from transformers import PreTrainedModel

from hf_eft import Combination, EFTForCausalLM, KLConstrained, Phase
from hf_eft.decoding import replayed
from hf_eft.decoding.speculative import graphs

POOL = ("llama", "qwen3", "gpt2", "opt", "gpt_neox", "mixtral")


def model_of(*families: str, **kwargs: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(*(double(family, seed) for seed, family in enumerate(families)), **kwargs)


@pytest.mark.parametrize("number", range(20))
def test_random_cases(number: int) -> None:
    """Plain, then with drafts: both are recorded."""
    model, inputs, options, how = random_case(number, pool=POOL)
    expected = model.generate(**inputs, **options).tolist()
    with taped():
        assert model.generate(**inputs, **options, **static()).tolist() == expected
        assert model.generate(**inputs, **options, **how, **static()).tolist() == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True},
        {"repetition_penalty": 1.4},
        {"num_return_sequences": 2, "do_sample": True},
        {"min_new_tokens": 9},
    ],
    ids=str,
)
def test_every_step_is_replayed(options: dict[str, Any]) -> None:
    model = model_of("llama", "gpt2", "gpt_neox", alpha=0.4)
    asked = {**prompts("left"), **options, "max_new_tokens": 12}
    torch.manual_seed(3)
    expected = model.generate(**asked)
    with taped() as counts:
        torch.manual_seed(3)
        assert torch.equal(model.generate(**asked, **static()), expected)
    assert (counts.recorded, counts.replayed, counts.otherwise) == (1, 11, 0)


def test_what_cannot_be_recorded_is_compiled_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """An accelerator may refuse to record what it can run."""
    model = model_of("llama", "gpt2", "gpt2")
    expected = model.generate(**prompts("left"), max_new_tokens=6).tolist()

    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with taped() as counts, pytest.MonkeyPatch.context() as patched:
        patched.setattr(graphs, "_captured", refuse)
        patched.setattr(logging.getLogger("transformers"), "propagate", True)
        assert model.generate(**prompts("left"), max_new_tokens=6, **static()).tolist() == expected
    assert (counts.replayed, counts.otherwise) == (0, 5)
    assert "could not be recorded as a graph" in caplog.text


def test_scores_of_every_step_are_kept() -> None:
    """Each step is answered in the place of the one before."""
    model = model_of("llama", "gpt2", "gpt2")
    asked: dict[str, Any] = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = model.generate(**prompts("left"), **asked)
    with taped() as counts:
        got = model.generate(**prompts("left"), **asked, **static())
    assert counts.replayed == 7
    for name in ("scores", "logits"):
        for mine, theirs in zip(got[name], expected[name], strict=True):
            torch.testing.assert_close(mine, theirs)


def test_answers_outlive_the_next_step() -> None:
    """Whoever holds the logits of a step, as a processor may, holds them still after the next."""
    model = model_of("llama", "gpt2", "gpt2")
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = model._update_model_kwargs_for_generation

    def hold(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        held.append((outputs.logits, outputs.logits.clone()))
        return forward(outputs, *args, **kwargs)

    with taped(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "_update_model_kwargs_for_generation", hold)
        model.generate(**prompts("left"), max_new_tokens=6, **static())
    assert len(held) == 6 and all(torch.equal(now, then) for now, then in held)


def test_a_cache_that_is_full_at_the_end() -> None:
    """What is run to warm up writes nowhere behind it."""
    model = model_of("llama", "gpt2", "gpt2")
    for tokens in (2, 3):
        expected = model.generate(**prompts("one"), max_new_tokens=tokens)
        with taped() as counts:
            assert torch.equal(model.generate(**prompts("one"), max_new_tokens=tokens, **static()), expected)
        assert counts.replayed == tokens - 1


RECIPES: dict[str, Combination] = {
    "schedule": Combination.emulate(alpha=[1.5, 1.1, 0.8, 0.2, -0.4, 0.0, 1.0]),
    "phases": Combination.emulate(alpha={"think": 1.2, "answer": 0.3}, phases=[Phase("think", [10], [11, 12], budget=4)]),
    "rule": Combination.emulate(alpha=KLConstrained()),
    "rows": Combination.emulate(),
    "own": Combination.emulate(),
}


def recipe(kind: str) -> tuple[EFTForCausalLM, dict[str, Any]]:
    """A model and a call of 10 tokens that say what changes from step to step or from row to row."""
    members = {name: double("gpt2" if seed else "llama", seed) for seed, name in enumerate(("base", "tuned", "reference"))}
    model = EFTForCausalLM.from_models(**members, combination=RECIPES[kind])
    asked: dict[str, Any] = {**prompts("left"), "max_new_tokens": 10, "eos_token_id": None}
    if kind == "phases":
        asked["input_ids"] = asked["input_ids"].clone()
        asked["input_ids"][0, -1], asked["input_ids"][1, -2] = 10, 10
    if kind == "rows":
        asked["coefficients"] = torch.tensor([[1.0, 0.4, -0.4], [1.0, 1.1, -1.1], [1.0, -0.3, 0.3]])
    if kind == "own":
        ids = torch.tensor([[5, 6, 7, 8, 9, 10]] * 3)
        asked["member_inputs"] = {"tuned": {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]] * 3)}}
    return model, asked


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_what_changes_from_step_to_step_or_row_to_row_counts(kind: str) -> None:
    model, asked = recipe(kind)
    expected = model.generate(**asked)
    with taped() as counts:
        assert torch.equal(model.generate(**asked, **static()), expected)
    assert (counts.recorded, counts.replayed, counts.otherwise) == (1, 9, 0)
    if kind == "phases":
        assert "11, 12" in str(expected[0, -10:].tolist())  # the budget ends the thought on the way


def test_the_next_call_with_another_recipe_cache_or_weights() -> None:
    """Nothing outlives a call."""
    model = model_of("llama", "gpt2", "gpt2")
    asked: dict[str, Any] = {**prompts("left"), "max_new_tokens": 8}
    with taped():
        model.generate(**asked, **static())
        for alpha in (0.2, 1.7):
            model.alpha = alpha
            expected = model.generate(**asked)
            assert torch.equal(model.generate(**asked, **static()), expected)
        weight = model.tuned.lm_head.weight
        kept = weight.data
        try:
            weight.data = kept.flip(0)
            expected = model.generate(**asked)
            assert torch.equal(model.generate(**asked, **static()), expected)
        finally:
            weight.data = kept


@pytest.mark.parametrize("change", ["weights moved", "weights in place", "cache moved", "training"])
def test_what_a_callback_changes_on_the_way_is_not_missed(change: str) -> None:
    model = model_of("llama", "gpt2", "gpt2")
    weight = model.tuned.lm_head.weight
    kept, value = weight.data, weight.data.clone()

    def processor(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == prompts("left")["input_ids"].shape[1] + 4:
            if change == "weights moved":
                weight.data = value.flip(0)
            elif change == "weights in place":
                weight.data.copy_(value.flip(0))
            elif change == "training":
                model.tuned.train()
            elif caches:
                for layer in caches[-1].layers:
                    layer.keys, layer.values = layer.keys.flip(2).flip(2), layer.values.clone()
        return scores

    caches: list[Any] = []
    prepare = model._prepare_cache_for_generation

    def prepared(config: Any, model_kwargs: Any, *args: Any) -> None:
        prepare(config, model_kwargs, *args)
        caches.extend(each for key, each in model_kwargs.items() if key in ("cache", "past_key_values") and each is not None)

    answers = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "_prepare_cache_for_generation", prepared)
        for how in ({"cache_implementation": "static"}, static()):
            with taped() as counts:
                counts.otherwise = 0
                extra = {**how, "logits_processor": [processor]}
                torch.manual_seed(0)
                try:
                    answers.append(model.generate(**prompts("left"), max_new_tokens=12, **extra))
                finally:
                    weight.data = kept
                    weight.data.copy_(value)
                    model.tuned.eval()
    assert torch.equal(*answers)
    assert counts.replayed == (11 if change == "weights in place" else 4)
    assert counts.otherwise == (0 if change == "weights in place" else 7)


def test_what_is_not_replayed() -> None:
    """Beams move states; windows count in Python; hidden states are kept; what is hooked to a module must be called."""
    asked: dict[str, Any] = {**prompts("left"), "max_new_tokens": 12}
    model = model_of("llama", "gpt2", "gpt2")
    windows = model_of("mistral", "gpt2", "gpt2")
    for each, options in (
        (model, {"num_beams": 3}),
        (windows, {}),
        (model, {"output_hidden_states": True, "return_dict_in_generate": True}),
    ):
        expected = each.generate(**asked, **options)
        with taped() as counts:
            got = each.generate(**asked, **options, **static())
        if "return_dict_in_generate" in options:
            for mine, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
                torch.testing.assert_close(mine, theirs)
            got, expected = got.sequences, expected.sequences
        assert torch.equal(got, expected) and counts.recorded == counts.replayed == 0, options
        assert counts.otherwise == (0 if "num_beams" in options else 11)  # transformers compiles no beams
    calls: list[int] = []
    hook = model.tuned.transformer.h[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        with taped() as counts:
            model.generate(**asked, **static())
    finally:
        hook.remove()
    assert counts.recorded == 0 and len(calls) == 12


def test_a_step_in_pieces_is_what_it_was_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Between two graphs somebody may look at values, which a graph would not."""
    torch.compiler.reset()
    model = model_of("llama", "gpt2", "gpt2")
    expected = model.generate(**prompts("left"), max_new_tokens=8)
    layer, calls = model.tuned.transformer.h[0].attn, []
    forward = layer.forward

    def in_pieces(*args: Any, **kwargs: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", in_pieces)
    monkeypatch.setattr(replayed, "records_on", lambda device: True)
    monkeypatch.setattr(PreTrainedModel, "get_compiled_call", lambda own, _: lambda **given: calls.append(1) or own(**given))
    options = static()
    options["compile_config"].backend = "eager"
    replayed.logger.warning_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert torch.equal(model.generate(**prompts("left"), max_new_tokens=8, **options), expected) and len(calls) == 7
    assert "could not be compiled as one graph" in caplog.text and "not replayed" in caplog.text
    torch.compiler.reset()


def test_drafts_that_are_all_kept() -> None:
    """The last drafted token is read, too, by the graph that drafts, as far ahead as it is."""
    model = model_of("llama", "gpt2", "gpt2", alpha=0.0)
    expected = model.generate(**prompts("left"), max_new_tokens=20)
    with taped():
        got = model.generate(
            **prompts("left"), max_new_tokens=20, assistant_model=model.base, num_assistant_tokens=3, **static()
        )
    assert torch.equal(got, expected) and model.speculation is not None and model.speculation.rounds <= 6


def test_rows_that_end_are_padded() -> None:
    model = model_of("llama", "gpt2", "gpt2")
    plain = model.generate(**prompts("left"), max_new_tokens=20)
    asked: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": int(plain[0, -12]), "pad_token_id": PAD}
    expected = model.generate(**prompts("left"), **asked)
    with taped() as counts:
        assert torch.equal(model.generate(**prompts("left"), **asked, **static()), expected)
    assert counts.recorded == 1


@pytest.mark.parametrize("change", ["a tensor more", "a number", "another name"])
def test_a_step_that_is_given_something_else_is_not_replayed(change: str) -> None:
    """Of the same shapes, even: the graph does not know what they are."""
    model = model_of("llama", "gpt2", "gpt2")
    asked: dict[str, Any] = {**prompts("left"), "max_new_tokens": 10}
    prepare, late = model.prepare_inputs_for_generation, prompts("left")["input_ids"].shape[1] + 5

    def prepared(ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = prepare(ids, **kwargs)
        if change == "another name":
            name = "certain_tokens" if ids.shape[1] >= late else "member_input_ids"
            return inputs | {name: torch.full((len(ids), inputs["input_ids"].shape[1]), 7)}
        if ids.shape[1] >= late:
            more = {
                "a tensor more": {"coefficients": torch.tensor([[1.0, 4.0, -4.0]] * len(ids))},
                "a number": {"labels": None},
            }
            inputs |= more[change]
        return inputs

    answers = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "prepare_inputs_for_generation", prepared)
        answers.append(model.generate(**asked, cache_implementation="static"))
        with taped() as counts:
            answers.append(model.generate(**asked, **static()))
    assert torch.equal(*answers)
    assert (counts.recorded, counts.replayed, counts.otherwise) == (1, 4, 5)


@pytest.mark.filterwarnings("ignore")
def test_members_on_an_adapter() -> None:
    peft_model, _ = adapted("lora")
    model = EFTForCausalLM.from_models(double("llama", 0).float(), tuned=peft_model)
    expected = model.generate(**prompts("left"), max_new_tokens=8)
    with taped() as counts:
        assert torch.equal(model.generate(**prompts("left"), max_new_tokens=8, **static()), expected)
    assert counts.replayed == 7


@pytest.mark.parametrize("kind", [pytest.param("adapter", marks=PEFT_SAYS), *sorted(RECIPES)])
def test_a_step_is_one_graph_that_the_next_call_has_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By dynamo itself, without anything between two graphs, which is what is recorded; and never as it would be otherwise."""
    torch.compiler.reset()
    if kind == "adapter":
        model, asked = EFTForCausalLM.from_models(double("llama", 0).float(), tuned=adapted("lora")[0]), {**prompts("left")}
    else:
        model, asked = recipe(kind)
    expected = model.generate(**asked | {"max_new_tokens": 10})
    monkeypatch.setattr(replayed, "records_on", lambda device: True)
    monkeypatch.setattr(PreTrainedModel, "get_compiled_call", lambda model, config: None)
    options, made = static(), []
    options["compile_config"].backend = "eager"
    for tokens in (10, 8):
        torch._dynamo.utils.counters.clear()
        got = model.generate(**asked | {"max_new_tokens": tokens}, **options)
        assert torch.equal(got, expected[:, : got.shape[1]])
        made.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # A member's own token is read here where it lies, which is elsewhere at the second step: a graph reads a copy.
    assert made == [2 if kind == "own" else 1, 0]
    torch.compiler.reset()
