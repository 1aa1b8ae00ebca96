"""Drafts on static caches: the tokens of plain decoding, few shapes, nothing compiled twice, one look at a block."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from families import PAD, build, prompts
from random_cases import double, random_case
from transformers import CompileConfig, StaticCache

from hf_eft import EFTForCausalLM
from hf_eft.decoding.speculative import graphs, scoring
from hf_eft.members import trial
from hf_eft.members.ragged import RaggedLayer, why_not
from hf_eft.members.releases import cache_of

POOL = ("llama", "qwen3", "mistral", "gemma3", "gpt2", "opt", "gpt_neox", "mixtral")
DAILY, CASES, CHUNK = 75, 150, 25
STATIC: dict[str, Any] = {"cache_implementation": "static"}


def compiled() -> dict[str, Any]:
    """Compiled on a CPU: "eager" traces and guards as any other does, and needs no C++ compiler."""
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    return {**STATIC, "compile_config": config}


@functools.cache
def shallow(family: str, seed: int) -> Any:
    """Of one layer: what a graph takes to be made goes by the layers."""
    return build(family, seed, **{"gpt2": {"n_layer": 1}}.get(family, {"num_hidden_layers": 1})).double()


def model_of(*families: str, make: Any = double, **kwargs: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(*(make(family, seed) for seed, family in enumerate(families)), **kwargs)


@pytest.mark.parametrize(
    "start",
    [pytest.param(start, marks=[pytest.mark.nightly] if start >= DAILY else []) for start in range(0, CASES, CHUNK)],
)
def test_random_cases_give_the_tokens_of_plain_decoding(start: int) -> None:
    for number in range(start, start + CHUNK):
        model, inputs, options, how = random_case(number, pool=POOL)
        expected = model.generate(**inputs, **options).tolist()
        got = model.generate(**inputs, **options, **how, **STATIC).tolist()
        assert got == expected, f"case {number}: {options} {how}"


@pytest.mark.parametrize("drafter", ["tuned", "small"])
def test_a_call_is_compiled_once(drafter: str) -> None:
    """Whatever blocks calls take: a graph that drafts, and one that looks at a block of any length."""
    torch.compiler.reset()
    model = model_of("llama", "gpt2", "gpt_neox", make=shallow, alpha=0.4)
    draft: dict[str, Any] = {"assistant_model": model.tuned if drafter == "tuned" else model.small_combination}
    inputs, graphs = prompts("left"), []
    for tokens, block in ((30, 3), (30, 5), (22, 2), (30, 16), (30, None)):  # the last is chosen on the way
        torch._dynamo.utils.counters.clear()
        got = model.generate(**inputs, max_new_tokens=tokens, **draft, num_assistant_tokens=block, **compiled())
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert torch.equal(got, model.generate(**inputs, max_new_tokens=tokens))
    # Of two that may draft, the one that was not asked, and rounds without a draft, have graphs of their own.
    assert graphs[0] == 2 and graphs[1:4] == [0, 0, 0] and graphs[4] <= 3, graphs
    assert model.speculation is not None and set(model.speculation.blocks) <= {0, 1, 2, 4, 8, 16}
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("asked", "taken"),
    [("reduce-overhead", None), ("max-autotune", "max-autotune-no-cudagraphs"), ("default", "default"), (None, None)],
)
def test_a_mode_is_heeded_but_for_graphs_of_its_own(
    asked: str | None, taken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator, what is compiled is recorded by us."""
    monkeypatch.setattr(graphs, "records_on", lambda device: True)
    assert graphs.Graphs({"mode": asked, "dynamic": None}, torch.device("cpu")).options == {"mode": taken, "dynamic": None}


def test_what_processors_say_is_not_compiled() -> None:
    """A graph that reads a token, one that reads a block; and what is not greedy chooses outside of them."""
    torch.compiler.reset()
    model = model_of("llama", "gpt2", "gpt_neox", make=shallow, alpha=0.4)
    draft: dict[str, Any] = {"assistant_model": model.tuned, "num_assistant_tokens": 3, "max_new_tokens": 20}
    for options in ({"repetition_penalty": 1.4}, {"do_sample": True, "coupling": "match", "seed": 1}):
        torch._dynamo.utils.counters.clear()
        expected = model.generate(**prompts("left"), max_new_tokens=20, **options)
        assert torch.equal(model.generate(**prompts("left"), **draft, **options, **compiled()), expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    torch.compiler.reset()


@pytest.mark.parametrize("states", [{}, STATIC], ids=["dynamic", "static"])
def test_a_block_is_looked_at_once(states: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator, each look waits for it: one at what was agreed and what ends, and one more at what follows a whole block."""
    model, looks = model_of("llama", "gpt2", "gpt2", alpha=0.3), []
    fetch = scoring.fetched
    monkeypatch.setattr(scoring, "fetched", lambda *values: looks.append(len(values)) or fetch(*values))
    model.generate(**prompts("left"), **states, max_new_tokens=16, assistant_model=model.base, num_assistant_tokens=2)
    report = model.speculation
    assert report is not None
    whole = report.bonus_steps - report.blocks.count(0)  # nothing is agreed on where nothing was drafted
    assert 0 < whole < report.rounds
    assert len(looks) == 1 + report.rounds + whole  # 1: the first token, which no draft comes before


@pytest.mark.parametrize("how", ["member", "small", "outsider", "seed"])
def test_prompts_of_members_own_with_strengths_by_row(how: str) -> None:
    model = model_of("llama", "gpt2", "mistral", make=shallow)
    inputs = dict(prompts("left"))
    own = {
        "tuned": {
            "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]] * 3),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]] * 3),
        }
    }
    options: dict[str, Any] = {"max_new_tokens": 12, "member_inputs": own}
    options["coefficients"] = torch.tensor([[1.0, 0.4, -0.4], [1.0, 1.1, -1.1], [1.0, -0.3, 0.3]])
    drafter = {"member": model.tuned, "small": model.small_combination, "outsider": shallow("llama", 7)}
    extra: dict[str, Any] = {"do_sample": True, "coupling": "match", "seed": 4} if how == "seed" else {}
    expected = model.generate(**inputs, **options, **extra)
    for states in (STATIC, compiled()):
        draft = {"assistant_model": drafter[how], "num_assistant_tokens": 4} if how in drafter else {}
        assert torch.equal(model.generate(**inputs, **options, **extra, **draft, **states), expected)


def test_scores_are_those_of_plain_decoding() -> None:
    model = model_of("llama", "gpt2", "gpt2")
    options: dict[str, Any] = {
        "max_new_tokens": 10,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    plain = model.generate(**prompts("left"), **options)
    out = model.generate(**prompts("left"), **options, **STATIC, assistant_model=model.tuned, num_assistant_tokens=3)
    for name in ("scores", "logits"):
        for mine, theirs in zip(out[name], plain[name], strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_window_that_has_passed_is_forgotten_and_padding_is_not_seen() -> None:
    """A window of 8: texts of 40 tokens, rows that keep different numbers."""
    model = EFTForCausalLM.from_models(
        double("mistral", 0), tuned=double("gemma3", 1), reference=double("mistral", 2), alpha=0.4
    )
    expected = model.generate(**prompts("left"), max_new_tokens=40)
    got = model.generate(**prompts("left"), max_new_tokens=40, **STATIC, assistant_model=model.tuned, num_assistant_tokens=5)
    assert torch.equal(got, expected)


def test_the_cache_goes_on_in_the_next_call_and_after_a_reset() -> None:
    model = model_of("llama", "gpt2", "gpt2")
    ids = prompts("one")["input_ids"]
    whole = model.generate(ids, max_new_tokens=24)
    cache = StaticCache(config=model.base.config, max_cache_len=64)
    draft: dict[str, Any] = {"assistant_model": model.tuned, "num_assistant_tokens": 3}
    out = model.generate(ids, cache=cache, max_new_tokens=8, return_dict_in_generate=True, **draft)
    for states in cache_of(out).members.values():
        assert not any(isinstance(layer, RaggedLayer) for layer in states.layers)
        assert int(states.get_seq_length()) == ids.shape[1] + 7
    text = model.generate(out.sequences, cache=cache, max_new_tokens=8)
    assert torch.equal(model.generate(text, cache=cache, max_new_tokens=8, **draft), whole)
    cache.reset()
    assert torch.equal(model.generate(ids, cache=cache, max_new_tokens=24, **draft), whole)


def test_rows_that_end_at_different_tokens_are_not_gone_on_from() -> None:
    model = model_of("llama", "gpt2", "gpt2")
    plain = model.generate(**prompts("left"), max_new_tokens=20)
    ends = {"eos_token_id": int(plain[0, -12]), "pad_token_id": PAD}
    out = model.generate(
        **prompts("left"), max_new_tokens=20, **ends, **STATIC, assistant_model=model.tuned, num_assistant_tokens=4,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert torch.equal(out.sequences, model.generate(**prompts("left"), max_new_tokens=20, **ends))
    with pytest.raises(ValueError, match="rows ended at different tokens"):
        model.generate(out.sequences, cache=cache_of(out), max_new_tokens=2)


def test_what_cannot_is_refused_with_the_reason() -> None:
    draft: dict[str, Any] = {"max_new_tokens": 4, "num_assistant_tokens": 2}
    ids = prompts("one")["input_ids"]
    model = model_of("llama", "lfm2", "llama")
    with pytest.raises(
        ValueError, match=r"'tuned' \(Lfm2ForCausalLM\) cannot in a static cache: its cache has layers that forget"
    ):
        model.generate(ids, **draft, **STATIC, assistant_model=model.reference)
    model = model_of("llama", "llama", "llama")
    with pytest.raises(ValueError, match="which it does not on static caches"):
        model.generate(ids, **draft, **STATIC, assistant_model=model_of("gpt2", "gpt2", "gpt2"))
    with pytest.raises(ValueError, match="The static cache of the member 'base' holds 8 tokens, but this call needs"):
        cache = StaticCache(config=model.base.config, max_cache_len=8)
        model.generate(ids, cache=cache, **draft, assistant_model=model.tuned)


def test_states_that_are_moved_away_are_refused() -> None:
    model = double("llama", 0)
    cache = StaticCache(config=model.config, max_cache_len=8)
    assert why_not(model, cache) is None
    cache.offloading = True  # to make one that is takes an accelerator, in some builds of torch
    assert why_not(model, cache) == "its cache is offloaded"


@torch.no_grad()
def test_members_that_something_is_hooked_to_are_not_compiled() -> None:
    """What is on disk, or on another device, is brought by hooks, which a graph would not run."""
    torch.compiler.reset()
    away = cpu_offload(copy.deepcopy(double("gpt2", 1)), execution_device="cpu")
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=away, reference=double("gpt2", 2))
    expected = model.generate(**prompts("left"), max_new_tokens=8)
    torch._dynamo.utils.counters.clear()
    got = model.generate(**prompts("left"), max_new_tokens=8, assistant_model=away, num_assistant_tokens=2, **compiled())
    assert torch.equal(got, expected) and not torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_model_that_reads_masks_by_row_wrongly_is_refused() -> None:
    """Every model is tried once, on a text that is taken back in part."""
    base, tuned = double("llama", 0), double("gpt2", 1)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=double("gpt2", 2))
    layer = tuned.transformer.h[0].attn
    forward = layer.forward

    def without_mask(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return forward(*args, attention_mask=None, **kwargs)

    trial._ragged.pop(tuned, None)
    layer.forward = without_mask
    try:
        with pytest.raises(ValueError, match=r"'tuned' \(GPT2LMHeadModel\) cannot in a static cache: its logits are off by"):
            model.generate(**prompts("left"), max_new_tokens=4, **STATIC, assistant_model=model.reference)
    finally:
        del layer.forward
        trial._ragged.pop(tuned, None)
