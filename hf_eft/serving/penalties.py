"""OpenAI's own ways to change what is likely: a bias of tokens, penalties for what has been said; and that something is likely at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import LogitsProcessor


class LogitBias(LogitsProcessor):
    r"""
    Adds a number to the logits of some tokens.

    Args:
        bias (`Mapping[str, float]`): By id, as JSON has it.
        size (`int`): How many tokens there are.

    Raises:
        `ValueError`: If something is no id of a token.
    """

    supports_continuous_batching = True
    is_stateless = True

    def __init__(self, bias: Mapping[str, float], size: int) -> None:
        self.ids, self.values = [], list(bias.values())
        for token in bias:
            if not (token.isascii() and token.isdigit() and int(token) < size):
                raise ValueError(f"`logit_bias` must name ids of tokens, 0 to {size - 1}, got {token!r}.")
            self.ids.append(int(token))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros_like(scores[0])  # (vocab,)
        return scores + bias.index_put((bias.new_tensor(self.ids).long(),), bias.new_tensor(self.values), accumulate=True)


class SomeLeft(LogitsProcessor):
    """
    The last processor of a request, which changes nothing: where the others leave no token, one that they ruled out would be chosen, or
    drawing would fail, in a batch for everybody.

    Args:
        judges (`bool`, *optional*, defaults to `True`): Whether it refuses that none is left; otherwise, who called it does.

    Raises:
        `ValueError`: If no token is left, or one has become infinitely likely.
    """

    supports_continuous_batching = True
    is_stateless = True

    def __init__(self, judges: bool = True) -> None:
        self.judges = judges

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best = scores.amax(dim=-1)  # (rows,)
        if self.judges and bool((best == -torch.inf).any()):
            raise ValueError(
                "No token is left: options of the request, such as `suppress_tokens` or `bad_words_ids`, rule them all out. Leave some out."
            )
        if bool((best.isnan() | (best == torch.inf)).any()):
            raise ValueError(
                "Options of the request make a token's logit larger than numbers are: give smaller penalties, biases or coefficients."
            )
        return scores


class Penalties(LogitsProcessor):
    r"""
    Takes `presence` from the logits of tokens that the answer has, and `frequency` for each time that it has them, as OpenAI's API does.

    Args:
        presence (`float`): Once for a token that was said.
        frequency (`float`): For each time.
        prompt (`int`): How many tokens the prompt has, which does not count.
    """

    supports_continuous_batching = False  # transformers' batches have no history at hand; a server's do
    is_stateless = True  # what was said is in the tokens

    def __init__(self, presence: float, frequency: float, prompt: int) -> None:
        self.presence, self.frequency, self.prompt = presence, frequency, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        said = input_ids[:, self.prompt :]  # (rows, tokens said)
        counts = torch.zeros_like(scores).scatter_add_(1, said, torch.ones_like(said, dtype=scores.dtype))  # (rows, vocab)
        return scores - self.presence * (counts > 0) - self.frequency * counts
