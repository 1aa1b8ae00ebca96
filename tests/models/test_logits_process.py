"""The add-on by itself: reuse, interleaving, roll-back, padding, and that it runs no more than it has to."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import oracle
import pytest
import torch
from families import EOS, build, prompts, shared
from transformers import LogitsProcessor, pipeline

from hf_eft import EFTLogitsProcessor


class Counting(torch.nn.Module):
    """Counts the tokens that a model reads, from outside."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens += kwargs["input_ids"].numel()


def fresh(base: Any, tuned: Any, reference: Any, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    add_on = EFTLogitsProcessor(tuned, reference, pad_token_id=0)
    return base.generate(**inputs, logits_processor=[add_on], **options).tolist()


@pytest.mark.parametrize("small", ["llama", "gpt2", "mistral", "lfm2", "mamba"])
def test_one_object_serves_any_sequence_of_calls(small: str) -> None:
    base, tuned, reference = shared("qwen3", 0), shared(small, 1), shared(small, 2)
    add_on = EFTLogitsProcessor(tuned, reference, pad_token_id=0)
    calls = [
        ("one", {}),
        ("left", {}),
        ("left", {"num_beams": 3}),
        ("one", {"num_beams": 2, "num_return_sequences": 2}),
        ("one", {"assistant_model": shared("llama", 5)}),
        ("even", {}),
        ("one", {"prompt_lookup_num_tokens": 3}),
        ("left", {}),
    ]
    for padding, options in calls:
        inputs, options = prompts(padding), {"max_new_tokens": 8, **options}
        expected = fresh(base, tuned, reference, inputs, **options)
        assert base.generate(**inputs, logits_processor=[add_on], **options).tolist() == expected, (padding, options)


def test_one_object_in_a_pipeline() -> None:
    from families import tokenizer

    base, tuned, reference = shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2)
    pipe = pipeline("text-generation", model=base, tokenizer=tokenizer())
    texts = ["w5 w9 w11", "w5 w9 w12 w13", "w40"]
    add_on = EFTLogitsProcessor(tuned, reference)
    together = pipe(texts, max_new_tokens=6, do_sample=False, logits_processor=[add_on])
    for text, got in zip(texts, together, strict=True):
        alone = pipe(text, max_new_tokens=6, do_sample=False, logits_processor=[EFTLogitsProcessor(tuned, reference)])
        assert got == alone


class Turns(LogitsProcessor):
    """Lets two threads take strict turns, a step each."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.barrier.wait(timeout=60)
        return scores


def test_two_interleaved_generate_calls() -> None:
    base, tuned, reference = shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2)
    add_on = EFTLogitsProcessor(tuned, reference, pad_token_id=0)
    barrier, results = threading.Barrier(2), {}

    def run(padding: str) -> None:
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "logits_processor": [Turns(barrier), add_on]}
        results[padding] = base.generate(**prompts(padding), **options).tolist()

    threads = [threading.Thread(target=run, args=(padding,)) for padding in ("one", "left")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for padding in ("one", "left"):
        assert results[padding] == fresh(base, tuned, reference, prompts(padding), max_new_tokens=6, min_new_tokens=6)


@pytest.mark.parametrize("small", ["llama", "mistral", "gemma3", "lfm2", "mamba", "opt"])
def test_random_questions(small: str) -> None:
    """Append, roll back, permute, duplicate, drop and replace rows at random: every answer is the oracle's."""
    models = {"tuned": shared(small, 1), "reference": shared("gpt2", 2)}
    add_on = EFTLogitsProcessor(**models)
    generator = torch.Generator().manual_seed(11)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    ids = torch.randint(3, 64, (2, 4), generator=generator)
    for _ in range(40):
        move = draw(6)
        if move == 0 and ids.shape[1] > 4:
            ids = ids[:, : ids.shape[1] - 1 - draw(min(4, ids.shape[1] - 3))]
        elif move == 1:
            ids = ids[torch.randint(ids.shape[0], (1 + draw(3),), generator=generator)]
        elif move == 2 and draw(4) == 0:
            ids = torch.randint(3, 64, (1 + draw(3), 3 + draw(9)), generator=generator)
        if ids.shape[1] < 30:
            new = torch.randint(3, 64, (ids.shape[0], 1 + draw(3)), generator=generator)
            ids = torch.cat([ids, new], dim=1)
        scores = torch.randn(ids.shape[0], 64, generator=generator)
        got = add_on(ids, scores)
        delta = oracle.rows(models, {"tuned": 1.0, "reference": -1.0}, ids, torch.ones_like(ids))
        torch.testing.assert_close(got.double(), (scores + delta).log_softmax(-1), atol=2e-4, rtol=0)
        assert torch.equal(add_on(ids, scores), got)


def test_nothing_is_read_twice() -> None:
    base, tuned, reference = shared("llama", 0), build("gpt2", 1), shared("gpt2", 2)
    count = Counting(tuned)
    add_on = EFTLogitsProcessor(tuned, reference)
    inputs = prompts("one")
    base.generate(**inputs, max_new_tokens=10, min_new_tokens=10, logits_processor=[add_on])
    assert count.tokens == 6 + 9
    count.tokens = 0
    add_on.reset()
    base.generate(**prompts("even"), max_new_tokens=10, min_new_tokens=10, num_beams=2, logits_processor=[add_on])
    assert count.tokens == 4 * (6 + 9)
    # Assisted decoding asks for each drafted position twice; the second time it is remembered.
    count.tokens, asked = 0, []
    add_on.reset()

    class Probe(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            asked.append(tuple(input_ids[0].tolist()))
            return scores

    options = {"max_new_tokens": 12, "min_new_tokens": 12, "assistant_model": shared("llama", 0)}
    base.generate(**inputs, **options, logits_processor=[add_on, Probe()])
    assert len(asked) > len(set(asked))
    assert count.tokens <= 6 + len(set(asked))


def test_the_scores_are_answered_as_they_came() -> None:
    tuned, reference = shared("gpt2", 1), shared("gpt2", 2)
    ids = prompts("even")["input_ids"]
    for dtype in (torch.float32, torch.bfloat16):
        scores = torch.randn(2, 64).to(dtype)
        scores[:, 5:9] = -torch.inf
        before = scores.clone()
        got = EFTLogitsProcessor(tuned, reference)(ids, scores)
        assert torch.equal(scores, before)
        assert got.shape == scores.shape and got.dtype == dtype
        assert bool((got[:, 5:9] == -torch.inf).all()) and bool(got[:, 9:].isfinite().all())
        torch.testing.assert_close(
            got.float().exp().sum(-1), torch.ones(2), atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0
        )


def test_padding_by_mask_by_token_and_by_default() -> None:
    base, tuned, reference = shared("llama", 0), shared("gpt2", 1), shared("opt", 2)
    inputs = prompts("left")
    options = {"max_new_tokens": 6, "num_beams": 2}
    expected = fresh(base, tuned, reference, inputs, **options)
    for add_on in (
        EFTLogitsProcessor(tuned, reference, attention_mask=inputs["attention_mask"]),
        EFTLogitsProcessor(tuned, reference),
    ):
        assert base.generate(**inputs, **options, logits_processor=[add_on]).tolist() == expected


def test_a_prompt_that_begins_with_the_pad_token_needs_the_mask() -> None:
    base, tuned, reference = shared("llama", 0), shared("gpt2", 1), shared("gpt2", 2)
    ids = torch.tensor([[0, 5, 6, 7], [0, 0, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    add_on = EFTLogitsProcessor(tuned, reference, attention_mask=mask)
    got = base.generate(ids, attention_mask=mask, max_new_tokens=1, logits_processor=[add_on])
    scores = torch.zeros(2, 64)
    delta = oracle.rows({"t": tuned, "r": reference}, {"t": 1.0, "r": -1.0}, ids, mask)
    torch.testing.assert_close(add_on(ids, scores).double(), delta.log_softmax(-1), atol=2e-4, rtol=0)
    assert got.shape == (2, 5)


def test_ambiguous_padding_is_refused() -> None:
    tuned = build("gpt2", 1)
    tuned.generation_config.pad_token_id = EOS
    add_on = EFTLogitsProcessor(tuned, shared("gpt2", 2))
    scores = torch.zeros(2, 64)
    with pytest.raises(ValueError, match="is that padding"):
        add_on(torch.tensor([[EOS, EOS, 5], [EOS, 6, 5]]), scores)
    add_on(torch.tensor([[EOS, 7, 5], [EOS, 6, 5]]), scores)  # every row begins alike: a begin token


def test_bad_calls() -> None:
    add_on = EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2))
    ids = torch.tensor([[3, 4]])
    with pytest.raises(ValueError, match=r"more than padding, got 'base': 200, .*assistant_vocab_size=200"):
        add_on(ids, torch.zeros(1, 200))
    with pytest.raises(ValueError, match="shape"):
        add_on(ids[0], torch.zeros(1, 64))
    with pytest.raises(ValueError, match="without `input_ids`"):
        add_on(ids[:, :0], torch.zeros(1, 64))
    add_on.attention_mask = torch.ones(3, 2)
    with pytest.raises(ValueError, match="that of this call's prompts"):
        add_on(ids, torch.zeros(1, 64))


def test_a_failed_call_leaves_no_half_read_state(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, reference = build("gpt2", 1), shared("gpt2", 2)
    add_on = EFTLogitsProcessor(tuned, reference)
    ids, scores = torch.tensor([[3, 4, 5]]), torch.zeros(1, 64)
    expected = add_on(ids, scores)
    longer = torch.tensor([[3, 4, 5, 6]])
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="out of memory"):
        broken.setattr(reference, "forward", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("out of memory")))
        add_on(longer, scores)
    assert torch.equal(add_on(ids, scores), expected)
    torch.testing.assert_close(add_on(longer, scores), EFTLogitsProcessor(tuned, reference)(longer, scores))


def test_copies_do_not_share_states() -> None:
    add_on = EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2))
    ids, scores = torch.tensor([[3, 4, 5]]), torch.zeros(1, 64)
    expected = add_on(ids, scores)
    for other in (copy.copy(add_on), copy.deepcopy(add_on), pickle.loads(pickle.dumps(add_on))):
        torch.testing.assert_close(other(ids, scores), expected)
