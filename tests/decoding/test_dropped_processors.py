"""Models whose own `generate` drops logits processors: the add-on would be left out without a word, and refuses them."""

from __future__ import annotations

from typing import Any

import architecture_sight
import pytest
import torch
from oracle import log_probs
from transformers import GenerationMixin

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

PROMPT = torch.tensor([[5, 9, 7, 11]])


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [architecture_sight.build("janus", seed) for seed in (1, 2, 3)]


def asked(generate: Any, *model: Any) -> int:
    """How often a logits processor is called for three tokens."""
    seen: list[torch.Tensor] = []

    def look(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(input_ids)
        return scores

    generate(*model, input_ids=PROMPT, max_length=7, min_length=7, do_sample=False, logits_processor=[look])
    return len(seen)


def test_small_models_of_a_kind_that_drops_logits_processors_are_refused(models: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"'tuned' \(JanusForConditionalGeneration\) .* drops logits processors"):
        EFTLogitsProcessor(models[1], models[2])


def test_it_is_the_kind_that_does(models: list[Any]) -> None:
    assert asked(models[0].generate) == 0  # once it is not, the refusal is to go
    assert asked(GenerationMixin.generate, models[0]) == 3


def test_a_class_that_hands_them_on_is_not_refused(models: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mended = type("Mended", (type(models[0]),), {"generate": GenerationMixin.generate})
    for model in models:
        monkeypatch.setattr(model, "__class__", mended)
    add_on = EFTLogitsProcessor(models[1], models[2])
    out = models[0].generate(
        input_ids=PROMPT, max_new_tokens=3, do_sample=False, logits_processor=[add_on], output_scores=True,
        return_dict_in_generate=True, attention_mask=torch.ones_like(PROMPT),
    )  # fmt: skip
    check(models, out.sequences, out.scores)


def test_the_wrapper_combines_their_text(models: list[Any]) -> None:
    base, tuned, reference = models
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    out = model.generate(input_ids=PROMPT, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    check(models, out.sequences, out.logits)


def check(models: list[Any], sequences: torch.Tensor, steps: Any) -> None:
    named, weights = dict(zip(("base", "tuned", "reference"), models, strict=True)), {"base": 1, "tuned": 1, "reference": -1}
    assert len(steps) == 3
    for n, step in enumerate(steps):
        expected = log_probs(named, weights, sequences[0, : PROMPT.shape[1] + n])
        torch.testing.assert_close(step[0].double().log_softmax(-1), expected, atol=1e-4, rtol=0)
