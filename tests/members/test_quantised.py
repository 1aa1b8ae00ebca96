"""
Quantised members: base, small members or all; quantised while they are loaded or afterwards. Held against the stateless combination of what
each member says alone in the same quantisation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from adapted import PEFT_SAYS
from families import PAD, VOCAB, lora, prompts
from quantising import ON_IMPORT, PACKAGES, TRIO, in_place, load, needs, quantization
from transformers import LogitsProcessor, LogitsProcessorList

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.decoding.speculative.coupling import Noise

pytestmark = [pytest.mark.nightly, ON_IMPORT, *PEFT_SAYS]
RECIPE = {"base": 1.0, "tuned": 0.7, "reference": -0.7}
WHICH = {"base": {"base"}, "small": {"tuned", "reference"}, "all": set(TRIO)}
NEW = 8


def member(name: str, backend: str, how: str, which: str) -> Any:
    if name not in WHICH[which]:
        return load(name)
    return load(name, backend) if how == "while loading" else in_place(backend, load(name))


@functools.cache
def trio(backend: str, how: str, which: str) -> dict[str, Any]:
    needs(backend)
    return {name: member(name, backend, how, which) for name in TRIO}


def stateless(models: dict[str, Any], inputs: dict[str, torch.Tensor]) -> oracle.Stateless:
    """The combination as a function of whole texts, each member alone with one unpadded row."""
    length = inputs["input_ids"].shape[1]

    def ask(ids: torch.Tensor) -> torch.Tensor:
        mask = inputs["attention_mask"].repeat_interleave(len(ids) // len(inputs["input_ids"]), 0)
        whole = torch.cat([mask, torch.ones_like(ids[:, length:])], 1)
        return oracle.rows(models, RECIPE, ids, whole)

    model = oracle.Stateless(ask, VOCAB)
    model.generation_config = models["base"].generation_config
    return model


class Drawn(LogitsProcessor):
    """Of each row the token that its noise draws, and no other."""

    def __init__(self, seed: int, length: int) -> None:
        self.noise, self.length = Noise(seed), length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = self.noise.pick(scores, [input_ids.shape[1] - self.length] * len(scores))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def small_combination(model: EFTForCausalLM) -> dict[str, Any]:
    return {"assistant_model": model.small_combination, "num_assistant_tokens": 3}


def tuned(model: EFTForCausalLM) -> dict[str, Any]:
    return {"assistant_model": model.tuned, "num_assistant_tokens": 3}


SEEDED: dict[str, Any] = {"do_sample": True, "coupling": "match", "seed": 3}
STATIC: dict[str, Any] = {"cache_implementation": "static"}
# By name: options for both, options for the combination alone, who drafts, and how prompts are padded.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[EFTForCausalLM], dict[str, Any]] | None, str]] = {
    "greedy": ({}, {}, None, "one"),
    "padded batch": ({}, {}, None, "left"),
    "sampled": ({"do_sample": True, "temperature": 0.8}, {}, None, "left"),
    "seed": ({}, SEEDED, None, "left"),
    "beams": ({"num_beams": 3}, {}, None, "left"),
    "static": ({}, STATIC, None, "left"),
    "drafts": ({}, {}, tuned, "left"),
    "drafts of the small combination": ({}, {}, small_combination, "left"),
    "drafts on static caches": ({}, STATIC, tuned, "left"),
    "seed, drafts on static caches": ({}, {**SEEDED, **STATIC}, tuned, "left"),
    "no cache": ({}, {"use_cache": False}, None, "left"),
    "chunks": ({}, {"prefill_chunk_size": 4}, None, "left"),
}
NEW = 8


def expected_of(models: dict[str, Any], way: str) -> list[list[int]]:
    both, ours, _, padding = WAYS[way]
    inputs = prompts(padding)
    drawn = LogitsProcessorList([Drawn(ours["seed"], inputs["input_ids"].shape[1])] if "seed" in ours else [])
    torch.manual_seed(5)
    options: dict[str, Any] = {**both, "max_new_tokens": NEW, "logits_processor": drawn, "use_cache": False}
    return stateless(models, inputs).generate(**inputs, **options).tolist()


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("how", ["while loading", "afterwards"])
@pytest.mark.parametrize("backend", PACKAGES)
def test_tokens_are_those_of_the_members_alone(backend: str, how: str, which: str) -> None:
    models = trio(backend, how, which)
    model = EFTForCausalLM.from_models(**models, alpha=RECIPE["tuned"])
    wanted: dict[str, Any] = {}
    wrong = []
    for way, (both, ours, drafter, padding) in WAYS.items():
        key = repr((both, padding, ours.get("seed")))
        if key not in wanted:
            wanted[key] = expected_of(models, way)
        torch.manual_seed(5)
        draft = {} if drafter is None else drafter(model)
        got = model.generate(**prompts(padding), **both, **ours, **draft, max_new_tokens=NEW).tolist()
        wrong += [way] if got != wanted[key] else []
    add_on = EFTLogitsProcessor(models["tuned"], models["reference"], alpha=RECIPE["tuned"])
    for padding in ("one", "left"):
        inputs = prompts(padding)
        add_on.attention_mask = inputs["attention_mask"]
        got = models["base"].generate(**inputs, max_new_tokens=NEW, logits_processor=[add_on], pad_token_id=PAD).tolist()
        wrong += [f"add-on, {padding}"] if got != wanted[repr(({}, padding, None))] else []
    assert not wrong


@torch.no_grad()
def apart(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """By how much a member alone differs between a row and a padded batch."""
    together = model(**inputs, position_ids=(inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)).logits[:, -1]
    rows = [oracle.along(model, row[keep.bool()])[-1] for row, keep in zip(*inputs.values(), strict=True)]
    return float((together - torch.stack(rows)).abs().max())


@torch.no_grad()
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("backend", PACKAGES)
def test_logits_are_as_near_as_a_members_alone(backend: str, which: str) -> None:
    models, inputs = trio(backend, "while loading", which), prompts("left")
    got = EFTForCausalLM.from_models(**models, alpha=RECIPE["tuned"])(**inputs).logits[:, -1].double().log_softmax(-1)
    expected = oracle.rows(models, RECIPE, **dict(zip(("ids", "mask"), inputs.values(), strict=True)))
    rounding = 2e-5  # of the sum, which is in float32
    room = rounding + 2 * sum(abs(RECIPE[name]) * apart(each, inputs) for name, each in models.items())
    assert float((got - expected).abs().max()) <= room < 1e-3


@pytest.mark.parametrize("way", ["greedy", "padded batch", "beams", "static", "drafts", "drafts on static caches"])
@pytest.mark.parametrize("backend", PACKAGES)
def test_an_adapter_on_a_quantised_model(backend: str, way: str) -> None:
    """Tuned and reference have one trunk, run in one pass where they can be."""
    needs(backend)
    torch.manual_seed(0)
    adapter = lora(load("reference", backend))
    model = EFTForCausalLM.from_models(load("base"), tuned=adapter, alpha=RECIPE["tuned"])
    models = {"base": load("base"), "tuned": adapter, "reference": load("reference", backend)}
    both, ours, drafter, padding = WAYS[way]
    draft = {} if drafter is None else drafter(model)
    got = model.generate(**prompts(padding), **both, **ours, **draft, max_new_tokens=NEW).tolist()
    assert got == expected_of(models, way)
    plain = {**models, "tuned": models["reference"]}
    assert way != "greedy" or got != expected_of(plain, way)  # or the adapter would not matter


def test_what_is_asked_of_from_pretrained_reaches_the_members(tmp_path: Any) -> None:
    """A saved combination, quantised while it is loaded: some members, each by another backend."""
    for backend in PACKAGES:
        needs(backend)
    EFTForCausalLM.from_models(**{name: load(name) for name in TRIO}, alpha=RECIPE["tuned"]).save_pretrained(tmp_path)
    backends = dict(zip(TRIO, ("nf4", "torchao", "quanto"), strict=True))
    own = {name: {"quantization_config": quantization(backend)} for name, backend in backends.items()}
    model = EFTForCausalLM.from_pretrained(tmp_path, member_kwargs=own)
    models = {name: load(name, backend) for name, backend in backends.items()}
    got = model.generate(**prompts("left"), max_new_tokens=NEW).tolist()
    assert got == expected_of(models, "padded batch")
