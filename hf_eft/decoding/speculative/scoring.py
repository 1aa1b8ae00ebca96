"""What the combination says of tokens that were read, what processors make of it, and which token is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...members.checks import Finite
from ...members.devices import fetched
from ...members.members import Members
from ...recipe.combination import Combination
from ...recipe.combine import certainly, combine
from .coupling import accept_equal, accept_ratio
from .drafting import Drafter
from .request import Settings
from .rows import Rows
from .standing import Standing


class Scoring:
    r"""
    From logits to scores to tokens, for the rows of a call that are present, at the tokens ahead of them.

    Args:
        members ([`Members`]): What is combined.
        combination ([`Combination`]): How.
        settings ([`Settings`]): How tokens are chosen.
        rows ([`Rows`]): The rows.
        coefficients (`torch.Tensor` of shape `(rows, members)`, *optional*): Those of the call, in place of the recipe's.
        processors (`LogitsProcessorList`): What changes logits before a token is chosen.
        standing ([`~hf_eft.decoding.speculative.standing.Standing`], *optional*): Where rows stand in the phases of the recipe.
    """

    def __init__(
        self,
        members: Members,
        combination: Combination,
        settings: Settings,
        rows: Rows,
        coefficients: torch.Tensor | None,
        processors: Any,
        standing: Standing | None = None,
    ) -> None:
        self.members, self.combination, self.settings, self.rows = members, combination, settings, rows
        self.coefficients, self.processors, self.device = coefficients, processors, rows.tokens.device
        self.standing = standing
        self._unchecked: list[Finite] = []

    @property
    def is_plain(self) -> bool:
        """Whether the most likely token is chosen, whatever was chosen before."""
        greedy = not self.settings.do_sample and not self.settings.confidence
        varies = self.standing is not None or (self.coefficients is None and self.combination.scheduled)
        return greedy and not self.processors and not varies

    def target(self, read: Mapping[str, torch.Tensor], start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The combination's logits for the positions from `start` to `stop`, `(rows, stop - start, vocab)`, and what processors make of them;
        `read` are the members', `(rows, positions, width)` each.
        """
        if start == stop:
            logits = self.rows.tokens.new_empty((len(self.rows.present), 0, self.members.vocab_size), dtype=torch.float32)
            return logits, logits
        part = {name: logits[:, start:stop] for name, logits in read.items() if name in self.members.distinct}
        # Draws from what is not finite end the process on an accelerator: that is looked at before. Otherwise with the next look.
        by_name = self.members.by_name(part, later=None if self._by_ratio else self._unchecked)
        logits = combine(by_name, self.combination, self._coefficients_at(start, stop))
        logits = self._certainly(self.members.vocabulary.widen(logits, self.members.vocab_size), start, stop)
        return logits, self._processed_each(logits, start)

    def proposed(self, drafter: Drafter, read: Mapping[str, torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """What processors make of a drafter's logits, `(rows, stop - start, vocab)`; `read` are those of its readers at these positions."""
        if self._by_ratio and not bool((check := Finite(read, None)).holds):  # a token will be drawn from them
            check.refuse()
        vocabulary = self.members.vocabulary
        logits = vocabulary.cut(drafter.propose(read, self._coefficients_at(start, stop)))
        # A copy: what is never generated is ruled out of what is proposed, not of what the member says.
        logits = vocabulary.widen(logits.to(self.device, torch.float32, copy=True), self.members.vocab_size)
        return self._processed_each(self._certainly(logits, start, stop), start)

    def processed(self, logits: torch.Tensor, ahead: int) -> torch.Tensor:
        """What processors and warpers make of the logits, `(rows, vocab)`, for the token `ahead` tokens behind each row."""
        if not self.processors:
            return logits
        return self.rows.by_length(ahead, lambda ids: self.processors(ids, self.rows.among_all(logits)))

    def pick(self, scores: torch.Tensor, ahead: int) -> torch.Tensor:
        """A token for each row, `(rows,)`, for scores of `(rows, vocab)`."""
        if not self.settings.do_sample:
            return scores.argmax(-1)
        if self.settings.noise is not None:
            return self.settings.noise.pick(scores, self.rows.generated(ahead), self.rows.present)
        return torch.multinomial(scores.softmax(-1), 1).squeeze(1)

    def look(self, *values: torch.Tensor) -> list[Any]:
        r"""
        Tensors as lists, in one transfer, and with it a look at what the members have said since the last one.

        Raises:
            `FloatingPointError`: If that was not finite, as [`~hf_eft.members.members.Members.logits`] does.
        """
        checks, self._unchecked = self._unchecked, []
        *lists, finite = fetched(*values, torch.stack([check.holds for check in checks]) if checks else values[0].new_empty(0))
        for check, holds in zip(checks, finite, strict=True):
            if not holds:
                check.refuse()
        return lists

    def compare(self, drafted: torch.Tensor, proposed: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        How many drafted tokens each row keeps, `(rows,)`, and the token that takes the place of the first one that it does not, `(rows,)`.

        Args:
            drafted (`torch.LongTensor` of shape `(rows, block)`): The draft.
            proposed (`torch.Tensor` of shape `(rows, block, vocab)`): The scores that it was chosen from.
            scores (`torch.Tensor` of shape `(rows, block, vocab)`): The target's.
        """
        block = drafted.shape[1]
        if block == 0:
            return drafted.new_zeros(len(drafted)), drafted.new_zeros(len(drafted))
        if self._by_ratio:
            kept, following = accept_ratio(drafted, proposed.softmax(-1), scores.softmax(-1))
        else:
            wanted = self._choices(scores)
            kept = accept_equal(drafted, wanted)
            following = wanted.gather(1, kept.clamp(max=block - 1)[:, None]).squeeze(1)
        return kept, following

    def agreement(self, drafter: Drafter, read: Mapping[str, torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
        """
        How probable it is at each position that a token which this drafter had drafted would have been kept, `(rows, positions)`: 0 or 1
        unless draft and target are drawn apart. `scores` are the target's, `(rows, positions, vocab)`.
        """
        stop = scores.shape[1]
        proposed = self.proposed(drafter, {name: logits[:, :stop] for name, logits in read.items()}, 0, stop)
        if self._by_ratio:
            return torch.minimum(proposed.softmax(-1), scores.softmax(-1)).sum(-1)
        return (self._choices(proposed) == self._choices(scores)).float()

    @property
    def _by_ratio(self) -> bool:
        return self.settings.do_sample and self.settings.noise is None

    def _choices(self, scores: torch.Tensor) -> torch.Tensor:
        if not self.settings.do_sample:
            return scores.argmax(-1)
        return torch.stack([self.pick(scores[:, i], i) for i in range(scores.shape[1])], dim=1)  # (rows, positions)

    def _processed_each(self, logits: torch.Tensor, start: int) -> torch.Tensor:
        if len(self.processors) == 0:  # in graphs, releases of torch before 2.13 take any list of a class of its own for full
            return logits
        return torch.stack([self.processed(logits[:, i], start + i) for i in range(logits.shape[1])], dim=1)

    def _coefficients_at(self, start: int, stop: int) -> torch.Tensor | None:
        """Those of the call, or those of the recipe where every row has come to: `(rows, stop - start, members)`."""
        if self.coefficients is None and self.standing is not None:
            return self.standing.coefficients(start, stop)
        if self.coefficients is not None or not self.combination.scheduled:
            return self.coefficients
        places = [n for row in zip(*(self.rows.generated(i) for i in range(start, stop)), strict=True) for n in row]
        return self.combination.at(places, self.members.names).view(len(self.rows.present), stop - start, -1)

    def _certainly(self, logits: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """With certainty where a phase must end, for draft and target alike."""
        return certainly(logits, None if self.standing is None else self.standing.certain(start, stop))

    def keep(self, staying: torch.Tensor) -> None:
        """Go on with some of the rows only, `(staying,)`."""
        if self.coefficients is not None:
            self.coefficients = self.coefficients[staying]


def joined(reads: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Logits of tokens that were read one after the other, by reader, `(rows, positions, width)` each."""
    return {name: torch.cat([read[name] for read in reads], dim=1) for name in reads[0]} if reads else {}
