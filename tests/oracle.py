"""The oracle: emulated fine-tuning without a cache, without batching, without this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


@torch.no_grad()
def along(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """One model's logits after every prefix of `ids`, one unpadded row of shape (length,), in doubles: (length, vocab)."""
    return model(input_ids=ids[None], use_cache=False).logits[0].double()


def log_probs(models: Mapping[str, torch.nn.Module], coefficients: Mapping[str, float], ids: torch.Tensor) -> torch.Tensor:
    """The combination's log-probs for the token after `ids`, one unpadded row of shape (length,): (vocab,)."""
    total = 0.0
    for name, model in models.items():
        total = total + coefficients[name] * along(model, ids)[-1].log_softmax(-1)
    return total.log_softmax(-1)


def rows(models: Mapping[str, torch.nn.Module], coefficients: Mapping[str, float], ids: torch.Tensor, mask: torch.Tensor):
    """The same for every row of a padded batch, `ids` and `mask` of shape (batch, length): (batch, vocab)."""
    return torch.stack([log_probs(models, coefficients, row[keep.bool()]) for row, keep in zip(ids, mask, strict=True)])


def nucleus(log_probs: torch.Tensor, p: float) -> torch.Tensor:
    """Token by token: in, until the mass of those before it reaches p."""
    inside, mass = torch.zeros_like(log_probs, dtype=torch.bool), 0.0
    for token in log_probs.argsort(descending=True).tolist():
        if mass >= p:
            break
        inside[token] = True
        mass += float(log_probs[token].exp())
    return inside


def within(guide: torch.Tensor, p: float, values: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(~nucleus(guide, p), -torch.inf)


def plausible(guide: torch.Tensor, p: float, values: torch.Tensor) -> torch.Tensor:
    return values.masked_fill(guide.exp() < p * guide.exp().max(), -torch.inf)


def combined(
    logits: Mapping[str, torch.Tensor], coefficients: Mapping[str, float], truncation: tuple[str, float] | None = None
) -> torch.Tensor:
    """
    The combination of the members' logits for one token, `(vocab,)` each: the sum of the terms, and with a truncation `(rule, p)` that of
    log-probs. What a member with a say rules out is ruled out.
    """
    if truncation is not None:
        logits = {name: values.log_softmax(-1) for name, values in logits.items()}
    total = torch.zeros_like(next(iter(logits.values())))
    for name, values in logits.items():
        if coefficients[name] != 0:
            total = total + coefficients[name] * values.masked_fill(values == -torch.inf, 0.0)
    for name, values in logits.items():
        if coefficients[name] != 0:
            total = total.masked_fill(values == -torch.inf, -torch.inf)
    if truncation is None:
        return total
    rule, p = truncation
    guide = logits["base" if rule in ("base", "plausible") else "tuned"]
    if rule == "keep":
        return torch.where(nucleus(guide, p), total, guide)
    return plausible(guide, p, total) if rule == "plausible" else within(guide, p, total)


def chi_square(counts: dict[Any, int], probabilities: dict[Any, float]) -> tuple[float, int]:
    """The statistic and its degrees of freedom; outcomes expected less than 8 times are taken together."""
    total = sum(counts.values())
    cells = [(counts.get(k, 0), total * p) for k, p in probabilities.items() if total * p >= 8]
    rest = total - sum(c for c, _ in cells), total - sum(e for _, e in cells)
    if rest[1] >= 1:
        cells.append(rest)
    return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1


class Stateless(PreTrainedModel, GenerationMixin):
    """What transformers' own `generate` decodes without a cache: a function of whole rows `(rows, length)` to `(rows, vocab)`."""

    config_class = PretrainedConfig

    def __init__(self, ask: Callable[[torch.Tensor], torch.Tensor], vocab_size: int) -> None:
        super().__init__(PretrainedConfig(vocab_size=vocab_size))
        self.ask, self.place = ask, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.ask(input_ids)[:, None])
