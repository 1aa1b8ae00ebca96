"""Who may draft for a call: who was asked, and beside them whom the automatic schedule may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...members.members import Members
from ...recipe.combination import Combination
from .drafting import Drafter, LookupDrafter, MemberDrafter, NoDrafter, OutsideDrafter
from .line import Line
from .reading import Reading
from .rows import Rows
from .schedule import Way
from .small import SmallCombination, SmallDrafter


def drafters(
    assistant: Any,
    generation_config: Any,
    *,
    reading: Reading,
    combination: Combination,
    by_row: bool,
    chooses: bool,
    line: Line,
    rows: Rows,
    pictures: Mapping[str, Any],
    expand: int,
) -> list[Drafter]:
    r"""
    Args:
        assistant (`PreTrainedModel` or [`SmallCombination`], *optional*): Who was asked to draft.
        generation_config (`GenerationConfig`): Asks for the prompt, where nobody is asked.
        reading ([`~hf_eft.decoding.speculative.reading.Reading`]): The members of the call, and their states.
        combination ([`Combination`]): The recipe.
        by_row (`bool`): Whether rows have coefficients of their own.
        chooses (`bool`): Whether the small combination and a tuned member may stand in for each other.
        line ([`~hf_eft.decoding.speculative.line.Line`]): Where the rows stand that an outsider reads.
        rows ([`Rows`]): The rows.
        pictures (`Mapping[str, Any]`): What the call shows beside its prompts.
        expand (`int`): How many rows there are of each prompt.

    Returns:
        `list[Drafter]`: Who was asked comes first.

    Raises:
        `ValueError`: If the small combination was asked, and the recipe has none.
    """
    members = reading.members
    if isinstance(assistant, SmallCombination):
        small = SmallDrafter(reading, combination, by_row)
        tuned = [name for name in combination.tuned_names if members.owner[name] in small.members] if chooses else []
        alone = [MemberDrafter(name, reading) for name in dict.fromkeys(members.owner[name] for name in tuned)]
        return [small, *(each for each in alone if not _alike(small, each, combination, by_row))]
    if (name := members.find(assistant)) is not None:
        asked = MemberDrafter(name, reading)
        if not chooses or name not in {members.owner[tuned] for tuned in combination.tuned_names}:
            return [asked]
        try:
            small = SmallDrafter(reading, combination, by_row)
        except ValueError:  # the recipe has none
            return [asked]
        return [asked] if _alike(small, asked, combination, by_row) else [asked, small]
    if assistant is not None:
        return [OutsideDrafter(assistant, members.vocab_size, line, pictures, expand)]
    if generation_config.prompt_lookup_num_tokens is None:
        return [NoDrafter(rows)]
    return [LookupDrafter(rows, members.vocab_size, generation_config.max_matching_ngram_size or 2)]


def ways(drafters: Sequence[Drafter], members: Members) -> list[Way]:
    """What their rounds cost beside each other, in passes of a small member."""
    everybody = set(members.distinct)
    return [Way(members.passes(each.members) or 1, members.passes(everybody - set(each.members))) for each in drafters]


def _alike(small: SmallDrafter, alone: MemberDrafter, combination: Combination, by_row: bool) -> bool:
    """Whether the small combination is that member: at strength 1, and with `beta`."""
    return small.members == alone.members and combination.truncation is None and not by_row
