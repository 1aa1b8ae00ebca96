"""Members with recurrent states, when drafted tokens are rejected: they read again what was kept. And members that cannot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache

from ...members.devices import sent
from ...members.member import Member
from ...members.quantised import check_alone
from ...members.recurrent import is_recurrent
from ...members.roll_back import Mark, branch, take
from .line import Line


def check_within(member: Member, cache: Cache) -> None:
    """Raise if a member has states that are not in its cache, once it has read, or reads a token otherwise beside others."""
    check_alone(member.name, member.model)
    if member.is_stateful and not any(map(is_recurrent, cache.layers)):
        raise ValueError(
            f"The member {member.name!r} ({type(member.model).__name__}) keeps its recurrent states outside of its cache, where they can "
            "neither be put back nor follow their rows. Decode without an assistant and without a `seed`."
        )


def read_again(member: Member, cache: Cache, mark: Mark, tokens: torch.Tensor, kept: Sequence[int], line: Line) -> None:
    r"""
    Make a member's recurrent states those of the tokens that each row keeps: where a row keeps not all that it read, its states are put
    back and it reads again what it keeps. Rows that keep equally many read together.

    Args:
        member ([`~hf_eft.members.members.Member`]): The member.
        cache (`Cache`): Its cache, which has read `tokens`. Only recurrent states are written to.
        mark ([`Mark`]): Its states before `tokens`.
        tokens (`torch.LongTensor` of shape `(rows, read)`): What it has read since.
        kept (`Sequence[int]`): How many of these each row keeps, 1 or more.
        line ([`~hf_eft.decoding.speculative.line.Line`]): Where the rows stood before `tokens`.
    """
    read = tokens.shape[1]
    for count in sorted(set(kept) - {read}):
        rows = sent([row for row, n in enumerate(kept) if n == count], tokens.device)
        other, mask = branch(cache, mark, rows if len(rows) < len(kept) else None, read), line.seen(count)
        member.forward(
            input_ids=tokens[rows, :count],
            inputs_embeds=None,
            attention_mask=None if mask is None else mask[rows],
            position_ids=line.at(0, count)[..., rows, :],
            cache=other,
            use_cache=True,
            logits_to_keep=1,
            extra={},
        )
        take(cache, other, rows)
