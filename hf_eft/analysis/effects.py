"""What a combination changed in its members' distributions, at every position: functions of log-probs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..recipe.rules.measures import kl

_LEAST = 1e-6  # a change of probability that is more than rounding


@dataclass(frozen=True)
class Effects:
    r"""
    The combination beside its members, as lists over positions.

    Args:
        said (`Mapping[str, list[float]]`): By member, the log-prob of the token that was said.
        said_combined (`list[float]`): The combination's.
        choices (`Mapping[str, list[int]]`): By member, its most likely token.
        choice (`list[int]`): The combination's.
        total_variation (`Mapping[str, list[float]]`): Between the combination and each member.
        kl (`Mapping[str, list[float]]`): Divergence of the combination from each member.
        tuned_total_variation (`Mapping[str, list[float]]`): Between each tuned member and the member that is compared with.
        tuned_kl (`Mapping[str, list[float]]`): Divergence of each tuned member from it.
        acceptance (`Mapping[str, list[float]]`): By tuned member, `sum_v min(p, p_tuned)`.
        changed_by (`list[str | None]`): Whose term has the largest share in a choice that is not that of the member compared with.
        raised (`list[list[tuple[int, float, float]]]`): Tokens that gained the most probability: id, before, after.
        lowered (`list[list[tuple[int, float, float]]]`): Tokens that lost the most.
    """

    said: Mapping[str, list[float]]
    said_combined: list[float]
    choices: Mapping[str, list[int]]
    choice: list[int]
    total_variation: Mapping[str, list[float]]
    kl: Mapping[str, list[float]]
    tuned_total_variation: Mapping[str, list[float]]
    tuned_kl: Mapping[str, list[float]]
    acceptance: Mapping[str, list[float]]
    changed_by: list[str | None]
    raised: list[list[tuple[int, float, float]]]
    lowered: list[list[tuple[int, float, float]]]

    @classmethod
    def of(
        cls,
        log_probs: Mapping[str, torch.Tensor],
        combined: torch.Tensor,
        tokens: torch.Tensor,
        weights: torch.Tensor,
        against: str,
        tuned: tuple[str, ...],
        listed: int,
    ) -> Effects:
        r"""
        Args:
            log_probs (`Mapping[str, torch.Tensor]` of shape `(positions, vocab)`): The members', float32.
            combined (`torch.FloatTensor` of shape `(positions, vocab)`): The combination's.
            tokens (`torch.LongTensor` of shape `(positions,)`): What was said.
            weights (`torch.FloatTensor` of shape `(positions, members)`): The coefficients, in the order of `log_probs`.
            against (`str`): The member that the combination is compared with.
            tuned (`tuple[str, ...]`): The tuned members.
            listed (`int`): How many tokens are listed as raised, and as lowered.
        """
        probs, combined_probs = {name: values.exp() for name, values in log_probs.items()}, combined.exp()
        choices = {name: values.argmax(-1) for name, values in log_probs.items()}
        choice = combined.argmax(-1)
        others = [name for name in tuned if name != against]
        variation = {name: total_variation(combined_probs, values) for name, values in probs.items()}
        return cls(
            said={name: _of(values, tokens).tolist() for name, values in log_probs.items()},
            said_combined=_of(combined, tokens).tolist(),
            choices={name: values.tolist() for name, values in choices.items()},
            choice=choice.tolist(),
            total_variation={name: values.tolist() for name, values in variation.items()},
            kl={name: kl(combined, values).tolist() for name, values in log_probs.items()},
            tuned_total_variation={name: total_variation(probs[name], probs[against]).tolist() for name in others},
            tuned_kl={name: kl(log_probs[name], log_probs[against]).tolist() for name in others},
            acceptance={name: (1 - variation[name]).tolist() for name in tuned},
            changed_by=_changed_by(log_probs, choice, choices[against], weights, against),
            **_shifts(probs[against], combined_probs, listed),
        )


def total_variation(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """`1/2 sum |p - q|` of distributions, `(..., vocab)`: `(...,)`, 0 to 1."""
    return (0.5 * (p - q).abs().sum(-1)).clamp(max=1.0)


def _of(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return log_probs.gather(-1, tokens[:, None]).squeeze(-1)


def _changed_by(
    log_probs: Mapping[str, torch.Tensor], choice: torch.Tensor, before: torch.Tensor, weights: torch.Tensor, against: str
) -> list[str | None]:
    """By position, the member whose term adds most to the margin of the new choice over the old one."""
    names = list(log_probs)
    margins = torch.stack([_of(values, choice) - _of(values, before) for values in log_probs.values()], dim=-1)
    shares = torch.where(weights == 0, 0.0, weights * margins).nan_to_num(nan=0.0)  # (positions, members)
    shares[:, names.index(against)] = 0.0
    most, whose = shares.max(-1)
    return [
        None if now == old else names[member] if share > 0 else "truncation"
        for now, old, share, member in zip(choice.tolist(), before.tolist(), most.tolist(), whose.tolist(), strict=True)
    ]


def _shifts(before: torch.Tensor, after: torch.Tensor, listed: int) -> dict[str, list[list[tuple[int, float, float]]]]:
    change = after - before
    found = {}
    for kind, sign in (("raised", 1), ("lowered", -1)):
        moved, ids = (sign * change).topk(min(listed, change.shape[-1]), dim=-1)  # (positions, listed)
        columns = zip(
            moved.tolist(), ids.tolist(), before.gather(-1, ids).tolist(), after.gather(-1, ids).tolist(), strict=True
        )
        found[kind] = [
            [(i, old, new) for by, i, old, new in zip(*position, strict=True) if by > _LEAST] for position in columns
        ]
    return found
