"""Who drafts: a member on its own cache, an outsider, or the prompt itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...members.cache import EFTCache
from ...members.members import Members
from ...members.roll_back import Mark
from .line import Line
from .recurrent import check_within, read_again

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Drafter:
    """Reads tokens one by one and predicts the next. Of the rest, each does what it has states for."""

    costs = True  # whether a step takes time worth measuring
    member: str | None = None  # the member whose cache and logits these are

    def prefill(self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> None:
        """Read the prompt, `(rows, length)`."""

    def step(self, token: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
        """Read a token, `(rows, 1)`; logits for the next, `(rows, 1, vocab)`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it drafts.")

    def mark(self) -> None:
        """Remember recurrent states before a block."""

    def read_again(self, tokens: torch.Tensor, kept: Sequence[int], line: Line) -> None:
        """Bring recurrent states to what each row keeps of the block (see [`~hf_eft.decoding.speculative.recurrent.read_again`])."""

    def roll_back(self, drop: int, shift: torch.Tensor | None, trim: int) -> None:
        """Forget the last `drop` tokens, and bring the rows into line (see [`EFTCache.roll_back`])."""

    def keep(self, staying: torch.Tensor) -> None:
        """Go on with some of the rows only, `(staying,)`."""


class MemberDrafter(Drafter):
    """A member drafts: its cache and its logits serve drafting and verification, nothing is run twice, and the target looks after them."""

    def __init__(self, name: str, members: Members, cache: EFTCache) -> None:
        self.member = self._name = name
        self._members, self._cache = members, cache

    def step(self, token: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
        outputs = self._members.step(
            token, attention_mask=mask, position_ids=positions, cache=self._cache, use_cache=True, only=(self._name,)
        )
        return outputs[self._name].logits


class OutsideDrafter(Drafter):
    """A model that is no member drafts, on a cache of its own."""

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        self._members = Members({"assistant": model})
        if self._members.vocab_size != vocab_size:
            raise ValueError(
                f"The assistant has {self._members.vocab_size} tokens, the members {vocab_size}: it cannot draft for them."
            )
        self._cache = self._members.new_cache()
        self._mark = Mark(self._cache)

    def prefill(self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> None:
        self._read(tokens, mask, positions)
        check_within(self._members.distinct["assistant"], self._cache)
        self._cache.activate_past_recording()

    def step(self, token: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
        return self._read(token, mask, positions)

    def mark(self) -> None:
        self._mark = Mark(self._cache)

    def read_again(self, tokens: torch.Tensor, kept: Sequence[int], line: Line) -> None:
        if self._members.stateful:
            read_again(self._members.distinct["assistant"], self._cache, self._mark, tokens, kept, line)

    def roll_back(self, drop: int, shift: torch.Tensor | None, trim: int) -> None:
        self._cache.roll_back({"assistant": drop}, shift, {"assistant": trim})

    def keep(self, staying: torch.Tensor) -> None:
        self._cache.reorder_cache(staying)

    def _read(self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
        outputs: dict[str, Any] = self._members.step(
            tokens, attention_mask=mask, position_ids=positions, cache=self._cache, use_cache=True, logits_to_keep=1
        )
        return outputs["assistant"].logits


class LookupDrafter(Drafter):
    """The text so far drafts: what followed the last occurrence of its last tokens (prompt lookup)."""

    costs = False

    def __init__(self, rows: Any, vocab_size: int, ngram: int) -> None:
        self._rows, self._vocab_size, self._ngram = rows, vocab_size, ngram
        self._ahead = 0

    def step(self, token: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
        # Finite, so that a distribution is left if a processor forbids the guess.
        logits = torch.full((len(token), 1, self._vocab_size), -1e4, device=token.device)
        for place, row in enumerate(self._rows.present):
            logits[place, 0, self._guess(self._rows.tokens[row, : self._rows.lengths[row] + self._ahead])] = 0.0
        self._ahead += 1
        return logits

    def _guess(self, text: torch.Tensor) -> int:
        for size in range(min(self._ngram, len(text) - 1), 0, -1):
            windows = text[:-1].unfold(0, size, 1)  # (places, size)
            found = (windows == text[-size:]).all(-1).nonzero()
            if len(found):
                return int(text[int(found[-1]) + size])
        return int(text[-1])

    def roll_back(self, drop: int, shift: torch.Tensor | None, trim: int) -> None:
        self._ahead = 0


class NoDrafter(LookupDrafter):
    """Plain decoding: nothing is drafted."""

    def __init__(self, rows: Any) -> None:
        super().__init__(rows, 1, 0)

    def _guess(self, text: torch.Tensor) -> int:
        return 0
