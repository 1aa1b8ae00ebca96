"""Who watches tokens under speculation: processors that keep a state, streamers of several rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from families import PAD, VOCAB, prompts, shared
from transformers import LogitsProcessor, SynthIDTextWatermarkingConfig, TextStreamer, WatermarkingConfig

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.decoding.speculative.watchers import refuse_stateful


class Grammar(LogitsProcessor):
    """Advances by one state at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = torch.arange(scores.shape[-1]) % 4 == self.calls % 4
        self.calls += 1
        return scores.masked_fill(~allowed, -torch.inf)


class EvenAfterOdd(LogitsProcessor):
    """Goes by the ids, and says so."""

    is_stateless = True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = torch.arange(scores.shape[-1])[None] % 2 != input_ids[:, -1:] % 2
        return scores.masked_fill(~allowed, -torch.inf)


@pytest.fixture
def model() -> EFTForCausalLM:
    return EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gpt2", 1), reference=shared("gpt2", 2))


def drafting(model: EFTForCausalLM) -> dict[str, dict[str, Any]]:
    other = EFTForCausalLM.from_models(shared("gpt2", 1), tuned=shared("gpt2", 2), reference=shared("gpt2", 1))
    return {
        "member": {"assistant_model": model.tuned},
        "outsider": {"assistant_model": shared("gpt2", 7)},
        "combination": {"assistant_model": other},
        "prompt": {"prompt_lookup_num_tokens": 3},
    }


DRAFTERS = ["member", "outsider", "combination", "prompt"]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_processor_that_may_keep_a_state_is_refused(model: EFTForCausalLM, drafter: str) -> None:
    with pytest.raises(ValueError, match=r"Grammar may keep a state .*`processor.is_stateless = True`"):
        model.generate(**prompts("one"), max_new_tokens=6, logits_processor=[Grammar()], **drafting(model)[drafter])


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_processor_that_says_it_keeps_none_is_asked(model: EFTForCausalLM, drafter: str) -> None:
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "logits_processor": [EvenAfterOdd()]}
    expected = model.generate(**prompts("one"), **options)
    assert torch.equal(model.generate(**prompts("one"), **options, **drafting(model)[drafter]), expected)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "coupling": "match", "seed": 4}], ids=["plain", "seed"])
def test_where_nothing_is_drafted_a_state_is_kept(model: EFTForCausalLM, options: dict[str, Any]) -> None:
    for padding in ("one", "left"):
        inputs = prompts(padding)
        got = model.generate(**inputs, max_new_tokens=8, eos_token_id=None, logits_processor=[Grammar()], **options)
        new = got[:, inputs["input_ids"].shape[1] :]
        assert bool((new % 4 == torch.arange(8) % 4).all())


def test_transformers_own_are_known(model: EFTForCausalLM) -> None:
    inputs = prompts("one")
    pure: dict[str, Any] = {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[3]], "min_new_tokens": 4, "suppress_tokens": [6],
        "sequence_bias": [[[7], 1.0]], "prefix_allowed_tokens_fn": lambda row, ids: list(range(3, VOCAB)),
        "watermarking_config": WatermarkingConfig(bias=1.5),
    }  # fmt: skip
    options = {"max_new_tokens": 8, **pure}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, assistant_model=model.tuned), expected)
    refuse_stateful([EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2))])
    stateful = SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3)
    with pytest.raises(ValueError, match="SynthIDTextWatermarkLogitsProcessor may keep a state"):
        model.generate(**inputs, max_new_tokens=4, watermarking_config=stateful, assistant_model=model.tuned, do_sample=True)


def test_a_subclass_of_transformers_own_is_not_taken_for_it() -> None:
    class Mine(transformers.TemperatureLogitsWarper):
        pass

    refuse_stateful([transformers.TemperatureLogitsWarper(0.5)])
    with pytest.raises(ValueError, match="Mine may keep a state"):
        refuse_stateful([Mine(0.5)])


class Rows:
    """Tells rows apart by their places in what `put` is given, as transformers gives it."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        if value.dim() == 2:
            self.rows = [[] for _ in value]
            return
        for row, token in zip(self.rows, value.tolist(), strict=True):
            row.append(token)

    def end(self) -> None:
        """Nothing is kept back."""


@pytest.mark.parametrize("how", ["member", "prompt", "seed"])
def test_a_streamer_of_several_rows_is_refused(model: EFTForCausalLM, how: str) -> None:
    options = {"do_sample": True, "coupling": "match", "seed": 3} if how == "seed" else drafting(model)[how]
    plain = Rows()
    expected = model.generate(**prompts("even"), max_new_tokens=5, pad_token_id=PAD, streamer=plain)
    assert plain.rows == expected[:, 6:].tolist()
    with pytest.raises(ValueError, match="A streamer is told of tokens, not of rows, and 2 rows"):
        model.generate(**prompts("even"), max_new_tokens=5, pad_token_id=PAD, streamer=Rows(), **options)


def test_one_row_is_streamed(model: EFTForCausalLM) -> None:
    from families import tokenizer

    class Kept(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text

    streamer = Kept(tokenizer(), skip_prompt=True)
    got = model.generate(**prompts("one"), max_new_tokens=8, streamer=streamer, assistant_model=model.tuned)
    assert streamer.text.split() == tokenizer().decode(got[0, 6:]).split()
