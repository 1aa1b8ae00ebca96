"""Members, prompts and what `generate` says of them, for the tests of continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import families
import pytest
import torch
from families import BOS, EOS, PAD, VOCAB, build, shared
from transformers import ContinuousBatchingConfig, GenerationConfig

from hf_eft import EFTForCausalLM

PAGED = [name for name in families.FAMILIES if name not in {"falcon", "lfm2", "mamba"}]
# Deeper and narrower than the members that the tests combine with it.
BASE: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


# Some shorter than a page, one longer than a batch, so that its prefill is cut, and two that begin as it does.
_FIVE = prompts(2, 9, 6, 17, 30)
PROMPTS = [*_FIVE, [*_FIVE[4][:20], 5, 6], _FIVE[4][:11]]


def config(**options: Any) -> ContinuousBatchingConfig:
    return ContinuousBatchingConfig(**{"num_blocks": 64, "page_size": 8, "max_batch_tokens": 16, **options})


def greedy(new_tokens: int = 10, **options: Any) -> GenerationConfig:
    return GenerationConfig(
        **{
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            **options,
        }
    )


def one_by_one(
    model: EFTForCausalLM, inputs: list[list[int]], generation: GenerationConfig, rows: Any = None
) -> list[list[int]]:
    rows = [None] * len(inputs) if rows is None else [row[None] for row in rows]
    return [
        model.generate(torch.tensor([ids]), generation_config=generation, coefficients=row)[0, len(ids) :].tolist()
        for ids, row in zip(inputs, rows, strict=True)
    ]


def batched(model: EFTForCausalLM, inputs: list[list[int]], generation: GenerationConfig, **options: Any) -> list[list[int]]:
    outputs = model.generate_batch(inputs, generation, options.pop("batching", config()), **options)
    return [output.generated_tokens for output in outputs.values()]


def three(family: str = "llama", **options: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(shared_base(), shared(family, 2), shared(family, 3), **options)


def shared_base() -> Any:
    return build("llama", 1, **BASE)


@contextmanager
def spied(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[list[Any]]:
    """What a method returns, as it is called."""
    original, seen = getattr(owner, name), []

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, spy)
        yield seen


def then(function: Callable[..., Any], what: Callable[[], Any]) -> Callable[..., Any]:
    """A function after which something happens."""

    def both(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        what()
        return result

    return both
