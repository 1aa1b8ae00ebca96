"""Whether there is a token left to choose: a truncation or a grammar leaves few, and the processors of a call may forbid all of these."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList

from ..grammar import GrammarLogitsProcessor
from ..members.vocabulary import end_tokens
from ..recipe.combination import Combination

# What stands for a token where none is left. As a score that is no `-inf`, since no distribution can be made of these alone.
_NONE = torch.finfo(torch.float32).min


def nothing_left(row: int) -> ValueError:
    """What to say where a row has come to its last token."""
    return ValueError(
        f"There is no token left for row {row}: the processors of this call forbid every one that the truncation of the recipe or a "
        "grammar leaves, or the one that ends a phase whose budget is used up. Take a wider truncation (or its rule 'keep'), or forbid "
        "fewer tokens."
    )


class SomethingLeft(LogitsProcessor):
    r"""
    Stands behind all other processors of a call. `is_final` says that a token is chosen for every row that has not ended: without any left
    for one, that is refused. Otherwise rows are marked, and [`refuse_marked`] tells those of which a token is taken.

    Args:
        prompt (`int`): How many tokens of a row are its prompt.
        ends (`Collection[int]`): What texts end with.
        pad (`int`, *optional*): What fills rows that have ended.
        is_final (`bool`): Whether nothing is drafted.
    """

    is_stateless = True

    def __init__(self, prompt: int, ends: Collection[int], pad: int | None, is_final: bool) -> None:
        self.prompt, self.ends, self.pad, self.is_final = prompt, list(ends), pad, is_final

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        none = scores.amax(-1) == -torch.inf  # (rows,)
        if not bool(none.any()):
            return scores
        if self.is_final and bool((live := none & ~self._over(input_ids)).any()):
            raise nothing_left(int(live.nonzero()[0]))
        return scores.masked_fill(none[:, None], _NONE)

    def _over(self, input_ids: torch.Tensor) -> torch.Tensor:
        said = input_ids[:, self.prompt :]
        over = torch.isin(said, torch.tensor(self.ends, device=said.device)).any(-1)
        return over | (said[:, -1] == self.pad) if said.shape[1] and self.pad is not None else over


class BeamsLeft:
    """A search drops beams without any token left. A prompt that has no other, and no text that has ended, is refused."""

    def __init__(self) -> None:
        self.ended: torch.Tensor | None = None  # (batch,): whether a text of the prompt has ended

    def look(self, scores: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            scores (`torch.Tensor` of shape `(batch, beams * vocab)`): Those of every text of a prompt that goes on by a token.

        Returns:
            `torch.Tensor` of the same shape: Numbers to draw by, where a prompt has none left and needs none.

        Raises:
            `ValueError`: For a prompt that needs one.
        """
        none = scores.amax(-1) == -torch.inf  # (batch,)
        if not bool(none.any()):
            return scores
        if bool((live := none if self.ended is None else none & ~self.ended).any()):
            raise nothing_left(int(live.nonzero()[0]))
        return scores.masked_fill(none[:, None], _NONE)


def refuse_marked(scores: torch.Tensor, rows: Collection[int], taken: Collection[int]) -> None:
    r"""
    Raise if a token was taken where none was left.

    Args:
        scores (`torch.Tensor` of shape `(rows, positions, vocab)`): What tokens were chosen by.
        rows (`Collection[int]`): Which rows of the batch they are.
        taken (`Collection[int]`): How many positions of each count.
    """
    marked = (scores.amax(-1) == _NONE).tolist()  # (rows, positions)
    for row, count, none in zip(rows, taken, marked, strict=True):
        if any(none[:count]):
            raise nothing_left(row)


class EFTLeftMixin(GenerationMixin):
    """The part of [`EFTForCausalLM`] that looks whether a token is left."""

    _request: Any
    combination: Combination

    def _with_something_left(self, input_ids: torch.Tensor, asked: dict[str, Any], is_final: bool) -> dict[str, Any]:
        """What a way of decoding is given, with a look at whether processors leave a token of those that a truncation leaves."""
        processors, config = asked["logits_processor"], asked["generation_config"]
        if not self._may_leave_nothing(processors):
            return asked
        pad = config._pad_token_tensor
        look = SomethingLeft(input_ids.shape[1], end_tokens(config), None if pad is None else int(pad), is_final)
        return {**asked, "logits_processor": LogitsProcessorList([*processors, look])}

    def _may_leave_nothing(self, processors: Sequence[Any]) -> bool:
        truncation, budgeted = self.combination.truncation, self.combination.budgeted
        cut = bool(processors) and (budgeted or (truncation is not None and truncation.rule != "keep"))
        return cut or any(isinstance(processor, GrammarLogitsProcessor) for processor in processors)

    def _get_top_k_continuations(self, accumulated_log_probs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if (left := self._request.beams_left) is not None:
            accumulated_log_probs = left.look(accumulated_log_probs)
        return super()._get_top_k_continuations(accumulated_log_probs, *args, **kwargs)

    def _update_finished_beams(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._update_finished_beams(*args, **kwargs)
        if (left := self._request.beams_left) is not None:
            left.ended = found[-1].any(-1)
        return found
