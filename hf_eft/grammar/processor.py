"""What keeps the answers of a `generate` call to grammars, under any way of decoding."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from ..members.call import Lock
from .grammars import Grammar
from .states import RowState
from .thinking import Thinking


class GrammarLogitsProcessor(LogitsProcessor):
    r"""
    Rules out the tokens after which no answer could be what a grammar says, and normalises what is left: the combination's distribution,
    renormalised over what the grammar allows at each step.

    Contract:

    - **Reuse**: for any number of calls whose prompts have that many tokens, padding included, one after the other.
    - **Batching and padding**: any number of rows; all keep to one grammar, or each prompt to its own. The rows of a prompt (beams,
      `num_return_sequences`) stand side by side, as `generate` has them.
    - **Beams, drafts of any kind, both couplings, static caches**: yes. What it answers depends on a row's tokens alone, so that tokens
      may be taken back and rows change places. A beam without any token left is dropped. A search ranks answers by the renormalised
      distribution. An assistant with another tokenizer is refused.
    - **The add-on**: yes, before or after [`EFTLogitsProcessor`]. `generate` of another model is not looked at: where other
      processors forbid all that the grammar leaves to some rows and not to all, these rows' scores are all `-inf`.
    - **Continuous batching**: `generate_batch` refuses all `logits_processor`s. The server's batches have grammars.
    - **The end**: an answer that is cut off by `max_new_tokens` is the beginning of what the grammar says. [`EFTForCausalLM`] looks at
      every answer again when `generate` ends.
    - **Threads**: calls are taken one step after the other. **Cost**: tens of microseconds for a row and token, on the CPU.

    Args:
        grammars ([`Grammar`] or `Sequence[Grammar]`): What answers may be: one for all, or one for each prompt of the batch.
        prompt (`int` or `torch.Tensor`): How many tokens the call's prompts have, with their padding; or its `input_ids`.
        thinking ([`Thinking`], *optional*): What an answer may begin with.

    Raises:
        `ValueError`: If there are not as many rows of each prompt as of the others, or no token is left to any row.
    """

    supports_continuous_batching = False  # transformers' batches have no history at hand; a server's do
    is_stateless = True  # what it remembers is found by the tokens alone

    def __init__(
        self, grammars: Grammar | Sequence[Grammar], prompt: int | torch.Tensor, thinking: Thinking | None = None
    ) -> None:
        self.grammars = [grammars] if isinstance(grammars, Grammar) else list(grammars)
        if not self.grammars:
            raise ValueError("There is no grammar: give one, or one for each prompt.")
        self.prompt = prompt if isinstance(prompt, int) else int(prompt.shape[-1])
        self.thinking, self._judges = thinking, True
        self._states: dict[tuple[int, int], RowState] = {}  # by grammar and row
        self._lock = Lock()

    def __deepcopy__(self, memo: Any) -> GrammarLogitsProcessor:
        return type(self)(self.grammars, self.prompt, self.thinking)

    def judged(self) -> GrammarLogitsProcessor:
        """The same, for a caller who looks at what is left himself: it never refuses that nothing is."""
        other = copy.copy(self)
        other._judges = False
        return other

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        masked = scores.masked_fill(~self.allowed(input_ids, scores.shape[-1]).to(scores.device), -torch.inf)
        none = masked.amax(-1, keepdim=True) == -torch.inf  # (rows, 1)
        if self._judges and bool(none.all()):
            raise ValueError(
                "No token is left that the grammar allows: the members or other options (such as `logit_bias`, `min_new_tokens` or a "
                "forced token) rule them all out, or the prompts have not the number of tokens that was given, "
                f"{self.prompt}. Leave those out, or give the call's `input_ids`."
            )
        return masked.log_softmax(-1).masked_fill(none, -torch.inf)

    def allowed(self, input_ids: torch.Tensor, size: int) -> torch.Tensor:
        r"""
        Which tokens may follow.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): Every token so far, the prompt included.
            size (`int`): How many tokens there are.

        Returns:
            `torch.BoolTensor` of shape `(rows, size)`, on the CPU: None of them where a row is no beginning of what its grammar says.
        """
        allowed = torch.zeros(len(input_ids), size, dtype=torch.bool)
        with self._lock:
            for row, (grammar, tokens) in enumerate(self._rows(input_ids)):
                mask = self._allowed(self._state(grammar, row), tokens)
                if mask is not None:
                    mask = mask[:size]
                    allowed[row, : len(mask)] = mask
        return allowed

    def check(self, sequences: torch.Tensor, pad: int | None) -> None:
        r"""
        Raise if an answer is not what its grammar says, or, where it was cut off, no beginning of it.

        Args:
            sequences (`torch.LongTensor` of shape `(rows, length)`): What `generate` returns.
            pad (`int`, *optional*): What fills rows that have ended.
        """
        with self._lock:
            for row, (grammar, tokens) in enumerate(self._rows(sequences)):
                said = tokens[self.prompt :]
                while said and said[-1] == pad and pad not in self.grammars[grammar].ends:
                    said.pop()
                answer = self._answer(tokens[: self.prompt], said, self.grammars[grammar].ends)
                if answer is not None and not self._state(grammar, row).is_kept(answer, cut=True):
                    raise ValueError(
                        f"Row {row} is not what its grammar says: {said}. Other processors forced it (as `forced_eos_token_id` does), or "
                        "a search was asked for more answers than it found: `num_return_sequences`. Leave those out."
                    )

    def _rows(self, input_ids: torch.Tensor) -> Iterable[tuple[int, list[int]]]:
        """The place of its grammar, and its tokens, for each row."""
        rows, prompts = len(input_ids), len(self.grammars)
        if rows % prompts:
            raise ValueError(
                f"There are {prompts} grammars, one for each prompt, and {rows} rows. Give one grammar, or as many as prompts."
            )
        if input_ids.shape[1] < self.prompt:
            raise ValueError(
                f"The prompts of this call have {input_ids.shape[1]} tokens or fewer, and {self.prompt} were given. Give the call's "
                "`input_ids`."
            )
        return [(row * prompts // rows, tokens) for row, tokens in enumerate(input_ids.tolist())]

    def _state(self, grammar: int, row: int) -> RowState:
        if (grammar, row) not in self._states:
            self._states[grammar, row] = RowState(self.grammars[grammar])
        return self._states[grammar, row]

    def _allowed(self, state: RowState, tokens: list[int]) -> torch.Tensor | None:
        said = tokens[self.prompt :]
        if self.thinking is None:
            return state.allowed(said)
        answer, or_else = self.thinking.begun(tokens[: self.prompt], said)
        if answer is None:  # free, but for the end
            free = torch.ones(state.grammar.size, dtype=torch.bool)
            free[list(state.grammar.ends)] = False
            return free
        mask = state.allowed(said[answer:])
        if or_else is not None:
            mask = torch.zeros(state.grammar.size, dtype=torch.bool) if mask is None else mask.clone()
            mask[or_else] = True
        return mask

    def _answer(self, prompt: list[int], said: list[int], ends: Sequence[int]) -> list[int] | None:
        """The answer in what was said, without the thoughts; `None` if it has not begun."""
        if self.thinking is None:
            return said
        begun = self.thinking.begun(prompt, said)
        if begun.answer is None or (begun.or_else is not None and not set(said) & set(ends)):
            return None
        return said[begun.answer :]
