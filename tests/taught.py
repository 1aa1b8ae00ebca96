"""Texts to learn from, and the stateless formula: row by row, without padding, without this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from families import PAD, VOCAB, build, lora

from hf_eft.training import EFTForTraining

FULL, LORA = "full", "lora"
LENGTHS = [4, 9, 7]


def rows(lengths: list[int] = LENGTHS, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]


def batch_of(texts: list[torch.Tensor], padding: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    ids, mask = torch.full((len(texts), longest), PAD), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        where = slice(longest - len(text), None) if padding == "left" else slice(0, len(text))
        ids[row, where], mask[row, where] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def members(kind: str, base: str = "llama", small: str = "qwen3", **options: Any) -> dict[str, Any]:
    reference = build(small, 2, **options).double()
    tuned = lora(reference) if kind == LORA else build(small, 1, **options).double()
    return {"base": build(base, 0).double(), "tuned": tuned, "reference": reference}


def formula(
    model: EFTForTraining, batch: Mapping[str, torch.Tensor], coefficients: Mapping[str, float] | None = None
) -> torch.Tensor:
    """The mean over labelled tokens of the negative logarithm of `softmax(sum_k c_k log p_k)`."""
    losses = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        ids, labels = ids[mask.bool()][None], labels[mask.bool()]
        total = torch.zeros(())
        for name, c in (coefficients or model.combination.coefficients).items():
            logits = model.members[name](input_ids=ids).logits[0]
            total = total + c * logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        log_probs = total.log_softmax(-1)
        losses += [-log_probs[i, label] for i, label in enumerate(labels[1:]) if label != -100]
    return torch.stack(losses).mean()


def gradients(model: EFTForTraining, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check_learns(model: EFTForTraining, loss: torch.Tensor, expected: torch.Tensor) -> None:
    """Value and gradients of a loss, and that it teaches all that learns."""
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    found, wanted = gradients(model, loss), gradients(model, expected)
    assert found.keys() == wanted.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
