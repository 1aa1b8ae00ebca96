"""What of a recipe varies along the rows that an add-on is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..members.vocabulary import Vocabulary
from ..recipe.combination import Combination
from .given import Given
from .phases import Phases, Strengths, markers_of


class AddedVarying:
    """Coefficients and certain tokens for the next token of rows, which are found by their tokens."""

    def __init__(self) -> None:
        self._kept: tuple[Any, ...] | None = None

    def at(
        self,
        combination: Combination,
        given: Given,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        names: Sequence[str],
        tokenizers: Mapping[str, Any] | None,
        vocabulary: Vocabulary,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        r"""
        Args:
            combination ([`Combination`]): The recipe.
            given ([`Given`]): What holds for the call.
            input_ids (`torch.LongTensor` of shape `(rows, length)`): Every token so far.
            mask (`torch.LongTensor` of shape `(rows, length)`): 0 where a token is padding.
            names (`Sequence[str]`): The members, in the order of the columns.
            tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*): Those of the members.
            vocabulary ([`~hf_eft.members.vocabulary.Vocabulary`]): The tokens that are generated.

        Returns:
            `tuple`: The coefficients, `(1 or rows, 1, members)`, if they vary; and the tokens that must follow, `(rows, 1)`, if any may.

        Raises:
            `ValueError`: If something counts from the end of the prompt, and nothing says where that is.
        """
        rows, length = input_ids.shape
        places: list[int] = []
        if combination.scheduled:
            places = [length - prompt_length(given, "A schedule of coefficients")]
        if not combination.phased:
            return (combination.at(places, names)[None] if places else None), None
        if self._kept is None or self._kept[:2] != (combination, given) or self._kept[2] is not vocabulary:
            start = prompt_length(given, "A prompt of its own") if given.prompts.names else 0
            markers = markers_of(combination.phases, tokenizers or {}, vocabulary)
            phases = Phases.of(markers, given.prompts, input_ids, start)
            self._kept = combination, given, vocabulary, phases, Strengths(combination, names, markers)
        *_, phases, strengths = self._kept
        states = phases.after(input_ids, mask, 1)
        return strengths.coefficients(states, lambda: [places] * rows, range(rows), rows), strengths.certain(states)


def prompt_length(given: Given, what: str) -> int:
    """Where the prompt of a call ends, which its mask says."""
    if given.attention_mask is None:
        raise ValueError(
            f"{what} counts from the end of the call's prompt, which the add-on is not told. Give the prompt's mask: "
            "`EFTLogitsProcessor(..., attention_mask=inputs['attention_mask'])`."
        )
    return given.attention_mask.shape[1]
