"""Who drafts: members on their own caches, an outsider, or the prompt itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...members.members import Members
from ...members.sight import sights_of
from .line import Line, lines_of
from .reading import Reading
from .recurrent import check_within
from .rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Drafter:
    r"""
    Reads tokens one by one and proposes the next. Of the rest, each does what it has states for.

    Args:
        name (`str`): What reports call it. (Members are called by identifiers, which those of outsiders are not.)
    """

    costs = True  # whether a step takes time worth measuring
    members: tuple[str, ...] = ()  # the distinct members whose caches and logits these are
    reading: Reading | None = None  # what it reads by

    def __init__(self, name: str) -> None:
        self.name = name

    def prefill(self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> None:
        """Read the prompt, `(rows, length)`."""

    def step(self, token: torch.Tensor, ahead: int) -> dict[str, torch.Tensor]:
        """Read a token, `(rows, 1)`, `ahead` tokens behind the rows' ends; by reader, logits for the next, `(rows, 1, width)`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it drafts.")

    def propose(self, logits: Mapping[str, torch.Tensor], coefficients: torch.Tensor | None) -> torch.Tensor:
        r"""
        What it drafts from.

        Args:
            logits (`Mapping[str, torch.Tensor]`): Of its readers, and maybe of others, `(rows, positions, width)` each. Left as they are.
            coefficients (`torch.Tensor`, *optional*): Those of these rows and positions, as [`~hf_eft.recipe.combine.combine`] takes them.

        Returns:
            `torch.Tensor` of shape `(rows, positions, width)`: Logits.
        """
        return logits[self.name]

    def mark(self) -> None:
        """Remember recurrent states before a block."""

    def settle(self, kept: Sequence[int], tokens: torch.Tensor) -> None:
        """Forget what was rejected of the tokens that it read, `(rows, read)`: of the draft, each row keeps so many."""

    def keep(self, staying: torch.Tensor) -> None:
        """Go on with some of the rows only, `(staying,)`."""


class MemberDrafter(Drafter):
    """A member drafts: its cache and its logits serve drafting and verification, nothing is run twice, and the target looks after them."""

    def __init__(self, name: str, reading: Reading) -> None:
        super().__init__(name)
        self.members: tuple[str, ...] = (name,)
        self.reading: Reading = reading

    def step(self, token: torch.Tensor, ahead: int) -> dict[str, torch.Tensor]:
        return self.reading.read(token, self.members, ahead)


class OutsideDrafter(Drafter):
    """A model that is no member drafts, on a cache and in a line of its own."""

    def __init__(self, model: PreTrainedModel, vocab_size: int, line: Line, pictures: Mapping[str, Any], expand: int) -> None:
        super().__init__("another model")
        members = Members({"assistant": model})
        if members.vocab_size != vocab_size:
            raise ValueError(
                f"The assistant has {members.vocab_size} tokens, the members {vocab_size}: it cannot draft for them."
            )
        self.reading: Reading = Reading(members, members.new_cache(), {"assistant": line})
        self._pictures, self._expand = pictures, expand

    def prefill(self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor) -> None:
        reading = self.reading
        members, cache, line = reading.members, reading.cache, reading.lines["assistant"]
        before = None if mask is None else mask[:: self._expand]
        sights = sights_of(members, tokens[:: self._expand], before, self._pictures, {}, expand=self._expand)
        own = {
            name: sight.inputs(tokens, 0, tokens.shape[1], cache.members[name], first=True) for name, sight in sights.items()
        }
        members.step(
            tokens, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True, logits_to_keep=1, own=own
        )
        reading.lines = lines_of(line, members, None, sights, tokens, line.room)
        check_within(members.distinct["assistant"], cache)
        cache.activate_past_recording()

    def step(self, token: torch.Tensor, ahead: int) -> dict[str, torch.Tensor]:
        return {self.name: self.reading.read(token, ("assistant",), ahead)["assistant"]}

    def mark(self) -> None:
        self.reading.mark()

    def settle(self, kept: Sequence[int], tokens: torch.Tensor) -> None:
        self.reading.settle(kept, tokens, {"assistant": tokens.shape[1]})

    def keep(self, staying: torch.Tensor) -> None:
        self.reading.keep(staying)


class LookupDrafter(Drafter):
    """The text so far drafts: what followed the last occurrence of its last tokens (prompt lookup)."""

    costs = False

    def __init__(self, rows: Rows, vocab_size: int, ngram: int) -> None:
        super().__init__("prompt lookup")
        self._rows, self._vocab_size, self._ngram = rows, vocab_size, ngram
        self._ahead = 0

    def step(self, token: torch.Tensor, ahead: int) -> dict[str, torch.Tensor]:
        # Finite, so that a distribution is left if a processor forbids the guess.
        logits = torch.full((len(token), 1, self._vocab_size), -1e4, device=token.device)
        for place, row in enumerate(self._rows.present):
            logits[place, 0, self._guess(self._rows.tokens[row, : self._rows.lengths[row] + self._ahead])] = 0.0
        self._ahead += 1
        return {self.name: logits}

    def _guess(self, text: torch.Tensor) -> int:
        for size in range(min(self._ngram, len(text) - 1), 0, -1):
            windows = text[:-1].unfold(0, size, 1)  # (places, size)
            found = (windows == text[-size:]).all(-1).nonzero()
            if len(found):
                return int(text[int(found[-1]) + size])
        return int(text[-1])

    def settle(self, kept: Sequence[int], tokens: torch.Tensor) -> None:
        self._ahead = 0


class NoDrafter(LookupDrafter):
    """Plain decoding: nothing is drafted."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows, 1, 0)

    def _guess(self, text: torch.Tensor) -> int:
        return 0
