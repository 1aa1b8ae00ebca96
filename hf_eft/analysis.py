"""What the delta did, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .combination import BASE
from .combine import combine
from .modeling_eft import EFTForCausalLM


@dataclass(frozen=True)
class TokenEffect:
    """One generated token, as the base alone and as the combination saw it."""

    token: int
    base_log_prob: float
    combined_log_prob: float
    base_choice: int  # what the base alone would have said here
    total_variation: float  # between the two distributions, 0 to 1

    @property
    def changed(self) -> bool:
        return self.token != self.base_choice

    @property
    def lift(self) -> float:
        """By how many nats the delta lifted the token."""
        return self.combined_log_prob - self.base_log_prob


@torch.no_grad()
def token_effects(model: EFTForCausalLM, sequence: torch.Tensor, prompt_length: int) -> list[TokenEffect]:
    r"""
    Compare the combination with its base at every token of an answer.

    Args:
        model ([`EFTForCausalLM`]): A combination with a base.
        sequence (`torch.LongTensor` of shape `(length,)`): Prompt and answer, without padding.
        prompt_length (`int`): How many of these tokens are the prompt; 1 or more.

    Returns:
        `list[TokenEffect]`: One for each token of the answer.

    Raises:
        `ValueError`: If the model has no base, or there is no prompt.
    """
    if BASE not in model.members:
        raise ValueError(f"There is no base to compare with: the members are {list(model.members)}.")
    if not 0 < prompt_length <= len(sequence):
        raise ValueError(f"`prompt_length` must be between 1 and the {len(sequence)} tokens given, got {prompt_length}.")
    by_member = model.member_logits(sequence[None].to(model.device))
    answer = slice(prompt_length - 1, len(sequence) - 1)
    base = by_member[BASE][0, answer].float().log_softmax(-1)  # (tokens, vocab)
    rows = None
    if model.combination.scheduled:
        generated = range(1 - prompt_length, len(sequence) + 1 - prompt_length)
        rows = model.combination.at((max(0, n) for n in generated), list(by_member))[None]  # (1, length, members)
    combined = combine(by_member, model.combination, rows)[0, answer].log_softmax(-1)  # (tokens, vocab)
    variation = 0.5 * (base.exp() - combined.exp()).abs().sum(-1)  # (tokens,)
    tokens = sequence[prompt_length:].tolist()
    return [
        TokenEffect(
            token=token,
            base_log_prob=base[i, token].item(),
            combined_log_prob=combined[i, token].item(),
            base_choice=int(base[i].argmax()),
            total_variation=variation[i].item(),
        )
        for i, token in enumerate(tokens)
    ]


def answer_tokens(sequence: torch.Tensor, prompt_length: int, special: set[Any]) -> torch.Tensor:
    """A generated row without the padding behind its end token, which is kept."""
    for i in range(prompt_length, len(sequence)):
        if int(sequence[i]) in special:
            return sequence[: i + 1]
    return sequence
