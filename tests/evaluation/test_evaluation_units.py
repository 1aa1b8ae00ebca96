"""Texts are scored by members across tokenizers in what these write, with their contexts as prompts; the same of what analysis looks at."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]

from hf_eft import EFTForCausalLM, tiny
from hf_eft.analysis import analyse, rewards
from hf_eft.evaluation import evaluate, harness

QUESTION = tiny.questions()[90]
TEXTS = [" Rosa Lawson was born in Quito.", " Rosa"]


@pytest.fixture(scope="module", params=["tokens", "bytes"])
def model(request: pytest.FixtureRequest) -> EFTForCausalLM:
    base, *_, tokenizer = tiny.load()
    tuned, reference, second = tiny.load_second()
    cutters = {"base": tokenizer, "tuned": second, "reference": second}
    return EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, tokenizers=cutters, vocabulary=request.param)


def pieces(model: EFTForCausalLM, text: str) -> list[int]:
    """A text in what the model writes."""
    return list(model._spellers["tuned"](text, add_special_tokens=False)["input_ids"])


def score(model: EFTForCausalLM, prompt: list[int], after: list[int]) -> float:
    """A stateless score, a token at a time: whatever is read is the prompt as it is and the tokens before."""
    states = model(torch.tensor([prompt + after]), logits_to_keep=len(after) + 1).logits[0, :-1].log_softmax(-1)
    return float(states.gather(-1, torch.tensor(after)[:, None]).sum())


def test_likelihoods(model: EFTForCausalLM) -> None:
    tokenizer = model.tokenizers["tuned"]
    lm = harness.Model(model, tokenizer, 2, 500, lambda done, total: None)
    asked = [Instance("loglikelihood", {}, (QUESTION.prompt, text), i) for i, text in enumerate(TEXTS)]
    prompt = tokenizer(QUESTION.prompt)["input_ids"]
    for (found, _), text in zip(lm.loglikelihood(asked), TEXTS, strict=True):
        assert math.isfinite(found) and found == pytest.approx(score(model, prompt, pieces(model, text)), abs=1e-4)
    [rolled] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (QUESTION.prompt,), 0)])
    assert math.isfinite(rolled)


def test_tasks_are_measured_and_another_tokenizer_is_refused(model: EFTForCausalLM) -> None:
    scores = evaluate({"combined": model}, model.tokenizers["tuned"], ["eft_last_word"], limit=2).scores
    assert math.isfinite(scores["eft_last_word"]["combined"]["perplexity"].value)
    with pytest.raises(ValueError, match=r"reads the tokens of `model\.tokenizers`"):
        evaluate({"combined": model}, tiny.load_second()[2], ["eft_last_word"], limit=2)


def test_a_passage_is_cut_as_it_would_be_written(model: EFTForCausalLM) -> None:
    tokenizer: Any = model.tokenizers["tuned"]
    analysis = analyse(model, tokenizer, QUESTION.prompt, TEXTS[0])
    assert [record.token.id for record in analysis.records] == pieces(model, TEXTS[0])
    assert "".join(record.token.text for record in analysis.records) == TEXTS[0]
    prompt = tokenizer(QUESTION.prompt)["input_ids"]
    assert analysis.summary()["log_prob"] == pytest.approx(score(model, prompt, pieces(model, TEXTS[0])), abs=1e-4)
    manner, plain = rewards(
        model, tokenizer, QUESTION.prompt, [" Of course! Rosa Lawson was born in Quito. Happy to help!", TEXTS[0]]
    )
    assert manner > plain and math.isfinite(plain)
