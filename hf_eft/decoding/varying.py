"""What of a recipe varies along the rows of a call: coefficients by position and by phase, and tokens that are certain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationMixin

from ..members.call import innermost
from ..members.checks import check_numbers
from ..members.members import Members
from ..recipe.combination import Combination
from ..recipe.phases import ANSWER, Phase
from .phases import Phases, Strengths, markers_of
from .speculative.request import Request
from .speculative.rows import Rows
from .speculative.standing import Standing


class EFTPhasesMixin(GenerationMixin):
    """The part of [`EFTForCausalLM`] that follows phases."""

    _members: Members
    combination: Combination
    tokenizers: Any

    @property
    def _request(self) -> Request:
        """What the call that is running in this thread asked for."""
        call = innermost(self)
        return Request() if call is None else call.request

    def generate(self, *args: Any, coefficients: Any = None, **kwargs: Any) -> Any:
        """As in transformers. Coefficients by phase are kept for this call."""
        if isinstance(coefficients, Mapping):
            self._request.by_phase = self._rows_by_phase(coefficients)
        elif coefficients is not None:
            kwargs["coefficients"] = coefficients
        return super().generate(*args, **kwargs)

    @property
    def _phases(self) -> tuple[Phase, ...]:
        """The phases of the recipe; of a call that has coefficients by phase, `"think"` where the recipe has none."""
        if not self.combination.phases and self._request.by_phase is not None:
            return (Phase(),)
        return tuple(self.combination.phases)

    def _rows_by_phase(self, coefficients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Coefficients by phase as one tensor, `(batch, phases, members)`."""
        names = [ANSWER, *(phase.name for phase in self.combination.phases or (Phase(),))]
        width = len(self._members.names)
        rows = {tuple(rows.shape) if isinstance(rows, torch.Tensor) else None for rows in coefficients.values()}
        shape = rows.pop() if len(rows) == 1 else None
        if set(coefficients) != set(names) or shape is None or len(shape) != 2 or shape[1] != width:
            given = {name: tuple(getattr(rows, "shape", ())) for name, rows in coefficients.items()}
            raise ValueError(
                f"`coefficients` by phase must be a tensor for each of {names}, all of one shape with a row for each sequence and a column "
                f"for each of {list(self._members.names)}, got {given}."
            )
        stacked = torch.stack([coefficients[name].detach().cpu().float() for name in names], dim=1)
        check_numbers(stacked, self._members.names, self.combination.ruled)
        return stacked

    def _follow(self, input_ids: torch.Tensor) -> tuple[Phases, Strengths]:
        """Who follows the rows of this call."""
        request = self._request
        if request.phases is None:
            markers = markers_of(self._phases, self._spellers, self._members.vocabulary)
            request.phases = (
                Phases.of(markers, request.prompts, input_ids, request.prompt_length or 0),
                Strengths(self.combination, self._members.names, markers, request.by_phase),
            )
        return request.phases

    def _standing(self, rows: Rows, attention_mask: torch.Tensor | None) -> Standing | None:
        """Where the rows of a call that drafts stand after their prompts, in a recipe with phases."""
        if not self._phases:
            return None
        prompts = rows.tokens[:, : rows.prompt]
        phases, strengths = self._follow(prompts)
        return Standing(rows, strengths, [states[-1] for states in phases.after(prompts, attention_mask, 1)])

    def _written(self, input_ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """What rows say so far, padding and fillings as they are: all of it, where a prompt is read in pieces."""
        prompt = self._request.prompt_ids
        if prompt is None or input_ids.shape[1] >= prompt.shape[1] or cache is None:
            return input_ids
        return prompt[:, : int(cache.get_seq_length()) + input_ids.shape[1]]

    def _varying_from(self, start: int, tokens: torch.Tensor, attention_mask: Any) -> dict[str, torch.Tensor]:
        """The same for `forward` alone, which is told these tokens and how many came before."""
        if not self.combination.phased:
            return {"coefficients": self.combination.at(range(start, start + tokens.shape[1]), self._members.names)[None]}
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2 else None
        if start or (attention_mask is not None and mask is None):
            raise ValueError(
                "Which phase tokens are in depends on all tokens before them, which `forward` is not told with a cache that holds some or "
                "with masks that are made. Pass `coefficients` for each token, or let `generate` do it."
            )
        return self._varying(tokens, mask, tokens.shape[1], given=False)

    def _varying(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, read: int, given: bool
    ) -> dict[str, torch.Tensor]:
        r"""
        What `forward` is told of the last `read` of these tokens: coefficients, and tokens that are certain, each for the token after it.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): Every token so far.
            attention_mask (`torch.Tensor` of shape `(rows, length)`, *optional*): 0 where a token is padding.
            read (`int`): How many are read.
            given (`bool`): Whether the call has coefficients for its rows, which replace those of the recipe. Budgets hold all the same.
        """
        length, start = input_ids.shape[1], self._request.prompt_length
        if start is None and innermost(self) is not None and self.combination.scheduled and not given:
            raise ValueError(
                "This way of decoding does not say where the prompt ends, which a schedule of coefficients counts from. Use numbers."
            )
        generated = [max(0, length - (start or 0) - back) for back in reversed(range(read))]
        if not self._phases:
            return {} if given else {"coefficients": self.combination.at(generated, self._members.names)[None]}
        if length < read:
            raise ValueError(
                "The phases of a recipe are found by the tokens: pass `input_ids` beside `inputs_embeds`, as many as these stand for."
            )
        phases, strengths = self._follow(input_ids)
        states, rows = phases.after(input_ids, attention_mask, read), len(input_ids)
        made = {"certain_tokens": strengths.certain(states)}
        if not given:
            made["coefficients"] = strengths.coefficients(states, lambda: [generated] * rows, range(rows), rows)
        return {name: value for name, value in made.items() if value is not None}
