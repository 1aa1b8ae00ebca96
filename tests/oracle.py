"""The oracle: emulated fine-tuning without a cache, without batching, without this library."""

from __future__ import annotations

from collections.abc import Mapping

import torch


@torch.no_grad()
def log_probs(models: Mapping[str, torch.nn.Module], coefficients: Mapping[str, float], ids: torch.Tensor) -> torch.Tensor:
    """The combination's log-probs for the token after `ids`, one unpadded row of shape (length,): (vocab,)."""
    total = 0.0
    for name, model in models.items():
        logits = model(input_ids=ids[None], use_cache=False).logits[0, -1].double()
        total = total + coefficients[name] * logits.log_softmax(-1)
    return total.log_softmax(-1)


def rows(models: Mapping[str, torch.nn.Module], coefficients: Mapping[str, float], ids: torch.Tensor, mask: torch.Tensor):
    """The same for every row of a padded batch, `ids` and `mask` of shape (batch, length): (batch, vocab)."""
    return torch.stack([log_probs(models, coefficients, row[keep.bool()]) for row, keep in zip(ids, mask, strict=True)])
