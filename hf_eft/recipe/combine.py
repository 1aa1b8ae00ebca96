"""The mathematics of emulated fine-tuning: one log-linear combination of language models, as functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .combination import Combination
from .rules.measures import nucleus
from .rules.rule import Rule
from .truncation import Truncation


def combine(
    logits: Mapping[str, torch.Tensor],
    combination: Combination,
    rows: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    said: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    r"""
    Combine the members' logits of a step.

    A token that any member with a say (a coefficient other than 0) rules out with `-inf` is ruled out. Terms that share one
    tensor are added up before it is read, so that coefficients which cancel leave no rounding error behind. Each rule of the recipe is
    asked once, for all positions, whatever is truncated.

    Args:
        logits (`Mapping[str, torch.Tensor]`):
            Raw logits or log-probs by member name, each of shape `(batch, positions, vocab)`, on one device. No NaN, no `+inf`.
        combination ([`Combination`]):
            The coefficients and the truncation.
        rows (`torch.Tensor` of shape `(batch, members)` or `(1 or batch, positions, members)`, *optional*):
            Coefficients for each row, or for each row and position, instead of the combination's; columns in the order of `logits`. NaN
            is what the combination's rule says of the member.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): What is computed in.
        said (`Mapping[str, torch.Tensor]`, *optional*):
            What the recipe's rules say of these positions, by member, as [`by_rule`] returns it. They are asked if this is not given.

    Returns:
        `torch.Tensor` of shape `(batch, positions, vocab)`, of that dtype, in a new buffer: not normalised. Without a truncation it
        is the plain sum of the terms, so that a row's constant stays that of the members' logits.
    """
    is_asked = said is None and len(combination.rules) > 0
    by_name = _log_probs(logits, combination, dtype) if is_asked or combination.truncation is not None else {}
    said = _by_rule(by_name, combination) if said is None else said
    if combination.truncation is None:
        return _weighted_sum(_terms(logits, combination, rows, dtype, said), dtype)
    total = _weighted_sum(_terms(by_name, combination, rows, dtype, said), dtype)
    return _truncate(total, by_name, combination.truncation, combination.nucleus_member(combination.truncation.rule))


def by_rule(logits: Mapping[str, torch.Tensor], combination: Combination) -> dict[str, torch.Tensor]:
    """The coefficients that the recipe's rules say, by member, `(batch, positions)` each, from logits as [`combine`] takes them."""
    return _by_rule(_log_probs(logits, combination, torch.float32), combination) if combination.rules else {}


def filled(rows: torch.Tensor, names: Sequence[str], said: Mapping[str, torch.Tensor]) -> torch.Tensor:
    r"""
    Coefficients with what the recipe's rules say in the place of NaN.

    Args:
        rows (`torch.Tensor` of shape `(1 or batch, positions, members)`): Coefficients.
        names (`Sequence[str]`): The members of the columns.
        said (`Mapping[str, torch.Tensor]`): What the rules say, as [`by_rule`] returns it.

    Returns:
        `torch.FloatTensor` of shape `(batch, positions, members)`, on the device of `rows`.
    """
    columns = [
        torch.where(rows[..., i].isnan(), said[name].to(rows.device), rows[..., i]) if name in said else rows[..., i]
        for i, name in enumerate(names)
    ]
    return torch.stack(torch.broadcast_tensors(*columns), dim=-1)


def _log_probs(logits: Mapping[str, torch.Tensor], combination: Combination, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The members' log-probs, of all or of those that rules read; one tensor for members that share one."""
    wanted = logits if combination.truncation is not None else {name: logits[name] for name in combination.read_by_rules}
    by_name: dict[str, torch.Tensor] = {}
    for name, x in wanted.items():
        twin = next((by_name[other] for other, y in wanted.items() if y is x and other in by_name), None)
        by_name[name] = x.to(dtype).log_softmax(-1) if twin is None else twin
    return by_name


def _by_rule(log_probs: Mapping[str, torch.Tensor], combination: Combination) -> dict[str, torch.Tensor]:
    """The coefficients that rules say, by member, `(batch, positions)` each."""
    each: dict[Rule, torch.Tensor] = {
        rule: rule({name: log_probs[name] for name in rule.reads}) for rule in combination.each_rule
    }
    return {name: value.at(each.__getitem__) for name, value in combination.rules}


def certainly(logits: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    r"""
    The logits, with certainty where a token must follow.

    Args:
        logits (`torch.Tensor` of shape `(batch, positions, vocab)`): Logits.
        tokens (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*): The tokens that must follow, -1 where none must.

    Returns:
        `torch.Tensor` of shape `(batch, positions, vocab)`: 0 for a token that must follow, and `-inf` for all others there.
    """
    if tokens is None:
        return logits
    tokens = tokens.to(logits.device)[..., None]  # (1 or batch, positions, 1)
    must = torch.arange(logits.shape[-1], device=logits.device) == tokens  # (1 or batch, positions, vocab)
    return torch.where(tokens < 0, logits, torch.where(must, 0.0, -math.inf).to(logits.dtype))


def _terms(
    logits: Mapping[str, torch.Tensor],
    combination: Combination,
    rows: torch.Tensor | None,
    dtype: torch.dtype,
    said: Mapping[str, torch.Tensor],
) -> list[tuple[torch.Tensor, float | torch.Tensor]]:
    """The distinct tensors with their net coefficients: a number, or (batch, 1 or positions, 1) for coefficients per row or by rule."""
    terms: list[tuple[torch.Tensor, float | torch.Tensor]] = []
    for column, (name, values) in enumerate(logits.items()):
        c: float | torch.Tensor
        ruled = said[name].to(dtype)[..., None] if name in said else None  # (batch, positions, 1)
        if rows is None:
            c = combination.coefficient(name) if ruled is None else ruled
        else:
            c = rows[..., column].to(values.device, dtype)  # (batch,) or (batch, positions)
            c = c.view(c.shape[0], -1, 1)
            c = c if ruled is None else torch.where(c.isnan(), ruled, c)
        twin = next((i for i, (known, _) in enumerate(terms) if known is values), None)
        if twin is None:
            terms.append((values, c))
        else:
            terms[twin] = (values, terms[twin][1] + c)
    return [(values, c) for values, c in terms if isinstance(c, torch.Tensor) or c != 0]


def _weighted_sum(terms: list[tuple[torch.Tensor, float | torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    if not terms:
        raise ValueError("The coefficients of members that share one model cancel to 0: nothing is left to combine.")
    total: Any = None
    for values, c in terms:
        if isinstance(c, torch.Tensor):
            term = torch.where(c == 0, 0.0, c * values)  # 0 * -inf is NaN, and a member without a say has none
            total = term if total is None else total.add_(term)
        elif total is None:
            total = values.to(dtype, copy=True) if c == 1 else values.to(dtype) * c
        else:
            total = total.add_(values, alpha=c)
    # With members free of NaN and +inf, these arise only from some member's -inf.
    return torch.nan_to_num_(total, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _truncate(
    total: torch.Tensor, log_probs: Mapping[str, torch.Tensor], truncation: Truncation, guide_name: str
) -> torch.Tensor:
    guide = log_probs[guide_name]  # (batch, positions, vocab)
    if truncation.rule == "plausible":
        outside = guide < guide.amax(-1, keepdim=True) + math.log(truncation.p)
    else:
        outside = ~nucleus(guide, truncation.p)
    if truncation.rule == "keep":
        return torch.where(outside, guide, total)
    return total.masked_fill_(outside, -math.inf)
