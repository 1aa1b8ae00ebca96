"""What distributions are like, and how far they are apart: functions of log-probs, in nats, safe where a probability is 0."""

from __future__ import annotations

import math

import torch


def expected(log_p: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The mean of `values` under p, both `(..., vocab)`: `(...)`. What has probability 0 counts nothing, whatever its value."""
    p = log_p.exp()
    return torch.where(p > 0, p * values, 0.0).sum(-1)


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """`-sum p log p`, of `(..., vocab)`: `(...)`."""
    return -expected(log_p, log_p)


def confidence(log_p: torch.Tensor) -> torch.Tensor:
    """The probability of the most likely token, of `(..., vocab)`: `(...)`."""
    return log_p.amax(-1).exp()


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The divergence `sum p log(p / q)` of Kullback and Leibler, of `(..., vocab)`: `(...)`; infinite where q rules out what p does not."""
    return expected(log_p, log_p - log_q).clamp(min=0)


def jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The mean divergence of p and q from their mean, of `(..., vocab)`: `(...)`, from 0 to log 2."""
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((kl(log_p, log_mean) + kl(log_q, log_mean)) / 2).clamp(max=math.log(2))


def agreement(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """1 where p and q, `(..., vocab)`, have the same most likely token, 0 elsewhere: `(...)`."""
    return (log_p.argmax(-1) == log_q.argmax(-1)).to(log_p.dtype)


def nucleus(log_probs: torch.Tensor, p: float) -> torch.Tensor:
    """
    The smallest set of most likely tokens with probability mass `p` or more, as a boolean tensor of the shape of
    `log_probs`, `(..., vocab)`. Never empty.
    """
    ordered, order = log_probs.sort(dim=-1, descending=True)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    inside = mass_before < p
    inside[..., 0] = True
    return torch.zeros_like(inside).scatter_(-1, order, inside)


def nucleus_mass(log_p: torch.Tensor, log_q: torch.Tensor, p: float) -> torch.Tensor:
    """The probability that the first distribution gives to the nucleus of mass `p` of the second, both `(..., vocab)`: `(...)`."""
    return torch.where(nucleus(log_q, p), log_p.exp(), 0.0).sum(-1)
