"""Speculative decoding of the combination: a member drafts, the others look at the whole block in one pass each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from ...members.devices import is_sharded, sent
from ...members.halfway import together
from ...members.releases import CACHE
from ..tokens_left import SomethingLeft, refuse_marked
from .accounts import Accounts
from .ahead import Aside, Draft, works_beside
from .clock import Clock
from .drafting import Drafter
from .ends import Ends
from .reading import Reading
from .schedule import Automatic, Fixed
from .scoring import Scoring, joined
from .static import drafted, step


class Speculation:
    r"""
    One call of speculative decoding, after the prompt was read.

    Every round a drafter reads the last token and drafts a block; the other members read both in one pass each; every row keeps its
    longest agreed prefix and one token more. A member that drafts reads each token once: its logits while drafting are those that
    verification needs, and it reads the last drafted token only if some row keeps all (the bonus token). Without a draft, members read the
    last token as in plain decoding. Drafters that are members can take turns, round by round: their states are the target's.

    Where the drafter is on a device of its own, it drafts the next block while the others look at this one, as if all of it were kept;
    the token after the block is then a drafted one, too, and looked at like the others. Where not all is kept, in all rows, that is taken
    back.

    Rows accept different lengths. Their states are kept in line on the right: a row that keeps fewer tokens is moved to the right, and
    what is padding in all rows is dropped, so that caches hold no rejected tokens. Recurrent states cannot forget: where a row keeps not
    all that was read, they are put back to where the block began, and what the row keeps is read again. Rows that end leave the batch, and
    cost nothing more: where the text says `rows`, it means those that are present.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        schedule: Fixed | Automatic,
        scoring: Scoring,
        reading: Reading,
        *,
        criteria: Any,
        streamer: Any,
        keep_scores: bool,
        keep_logits: bool,
    ) -> None:
        self.drafters, self.schedule, self.scoring = drafters, schedule, scoring
        self.reading, self.cache = reading, reading.cache
        self.members, self.settings, self.rows = scoring.members, scoring.settings, scoring.rows
        self.ends, self.streamer = Ends(criteria, self.rows), streamer
        # Processes that share a member must draft alike: then one clock is everybody's.
        shared = schedule.learns and any(is_sharded(member.model) for member in self.members.distinct.values())
        self._clock = lambda: Clock(self.rows.tokens.device, one_for_all=shared)
        self._works_beside = {drafter: works_beside(drafter, reading) for drafter in drafters}
        self._aside = Aside(self.rows.tokens.device if any(self._works_beside.values()) else torch.device("cpu"))
        self._ahead: Draft | None = None  # what was drafted while the target looked, and holds
        self.accounts = Accounts(self.drafters, schedule)
        self.open = list(range(self.rows.count))  # places, among the rows present, of those that have not ended
        self.scores: list[list[torch.Tensor]] | None = [[] for _ in self.rows.lengths] if keep_scores else None
        self.logits: list[list[torch.Tensor]] | None = [[] for _ in self.rows.lengths] if keep_logits else None

    def run(self, first: torch.Tensor) -> None:
        """Decode until every row has ended; `first` are the target's logits for the first token, `(rows, vocab)`."""
        scores = self.scoring.processed(first, 0)
        _, staying, _ = self._advance([0] * self.rows.count, self.scoring.pick(scores, 0), first[:, None], scores[:, None])
        while staying:
            with together(self.cache):  # members that draft are ahead of the others until these have looked
                self._keep(staying)
                staying = self._round()
        self.accounts.settle()

    def _round(self) -> list[int]:
        """Draft, verify, keep; returns the rows that have not ended, by their places among those present."""
        clock = self._clock()
        draft, drafter, block = self._begun()
        tokens, read, proposed = self._drafted(draft, block)  # (rows, block + 1)
        block = tokens.shape[1] - 1
        clock.lap()

        as_plain = block == 0 and self._saves_by_one_step(drafter)
        ahead = () if as_plain else drafter.members
        others = [name for name in self.members.distinct if name not in ahead]
        more = self._more(drafter, block)
        if more:  # The token after the block is one of those that are drafted meanwhile.
            looked = self._look_and_draft(draft, tokens, others, block + 1 + more)
            tokens, proposed = draft.line, draft.proposed(block + 1)
        else:
            looked = {**read, **self.reading.read(tokens, others, 0)}
        seen = block + bool(more)
        logits, scores = self.scoring.target(looked, 0, seen)  # (rows, seen, vocab)
        # Who did not draft is asked what it would have drafted.
        asked = [each for each in self.drafters if each is not drafter or not block] if self.schedule.learns else []
        would = self._would(asked, looked, scores[:, :block]) if block else []
        agreed, following, ending, answers = self._verify(tokens[:, 1 : seen + 1], proposed, scores, block, would)
        guessed, kept = [n > block for n in agreed], [min(n, block) for n in agreed]
        clock.lap()

        whole = [n == block and not more for n in kept]
        if read_all := any(whole) and not as_plain:
            last = step(self.reading, drafter, self.scoring, tokens[:, -1:], block)
            looked |= joined([{name: looked[name] for name in last}, last]) if block else last
        clock.lap()
        if any(whole):
            bonus_logits, bonus_scores = self.scoring.target(looked, block, block + 1)
            logits, scores = torch.cat([logits, bonus_logits], dim=1), torch.cat([scores, bonus_scores], dim=1)
            bonus = self.scoring.pick(bonus_scores[:, 0], block)
            following = torch.where(sent(whole, bonus.device), bonus, following)
            ending, would = None, [] if block else self._would(asked, looked, scores)
        going = len(self.open)
        appended, staying, more_answers = self._advance(kept, following, logits, scores, ending, would)
        if sum(guessed) == going == len(staying):
            self._ahead = draft.after(block + 1)
            tokens, drafter_read = tokens[:, : block + 1], block + 1  # it stays ahead of the others
        else:
            drafter_read = len(draft.read) if more else block + bool(read_all or as_plain)
        self._bring_into_line(drafter, [n - 1 for n in appended], tokens, drafter_read, block + 1)
        clock.lap()
        by_name = {each.name: values for each, values in zip(asked, answers or more_answers, strict=True)}
        self.accounts.add(draft, block, kept, by_name, clock, read_all)
        return staying

    def _verify(
        self, drafted: torch.Tensor, proposed: torch.Tensor, scores: torch.Tensor, block: int, asked: Sequence[torch.Tensor]
    ) -> tuple[list[int], torch.Tensor, list[list[bool]] | None, list[Any]]:
        """
        Compare a block, and perhaps the token after it, `(rows, block or block + 1)`, with the target's scores for them. Returns how many
        of them every row keeps; the token that follows, `(rows,)`, which is no answer yet where a row keeps a block that is all there is;
        which of the tokens kept in the block, and whether that token, ends the row; and what was asked besides. All of it is one look.
        """
        agreed, following = self.scoring.compare(drafted, proposed, scores)
        if not block:
            return [0 if i in self.open else -1 for i in range(len(drafted))], following, None, []
        if drafted.shape[1] > block:
            following = torch.where(agreed > block, drafted[:, block], following)
        ends = self.ends.by_token(torch.cat([drafted[:, :block], following[:, None]], dim=1))
        counts, ends, *answers = self._look(agreed, ends, *asked)
        counts = [n if i in self.open else -1 for i, n in enumerate(counts)]  # rows that have ended and stay get nothing
        return counts, following, [[*row[: max(n, 0)], row[-1]] for n, row in zip(counts, ends, strict=True)], answers

    def _would(self, asked: Sequence[Drafter], looked: Mapping[str, torch.Tensor], scores: torch.Tensor) -> list[torch.Tensor]:
        """How each of these drafters would have agreed with the target's scores, `(rows, positions, vocab)`, had it drafted."""
        return [self.scoring.agreement(each, looked, scores) for each in asked]

    # Drafting -----------------------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[Drafter, int]:
        """Who drafts, and how many tokens."""
        # The row with most to go says how long a block may be: one that is nearly there must not hold up the others.
        shortest = min(self.rows.lengths[self.rows.present[i]] for i in self.open)
        who, block = self.schedule.next(len(self.open))
        # Shapes that stay are worth more than what is drafted in vain at the end.
        most = self.rows.room if self.reading.keeps_shapes else self.settings.max_length - shortest - 1
        return self.drafters[who], max(0, min(block, most))

    def _saves_by_one_step(self, drafter: Drafter) -> bool:
        """Whether members that read a token apart, those that draft and the others, take longer than all in one step, as without drafts."""
        others = set(self.members.distinct) - set(drafter.members)
        devices = {member.device for member in self.members.distinct.values()}  # several work at the same time
        together = self.members.passes(self.members.distinct)
        return bool(drafter.members) and (
            len(devices) > 1 or self.members.passes(drafter.members) + self.members.passes(others) > together
        )

    def _begun(self) -> tuple[Draft, Drafter, int]:
        """The draft of a round, whose it is, and how many tokens it will have: begun ahead, or now."""
        if (draft := self._ahead) is not None:
            self._ahead, drafter, block = None, draft.drafter, draft.block
        else:
            drafter, block = self._plan()
            draft = Draft(drafter, [self.rows.last()])
        if block:
            drafter.mark()
            self.reading.mark()
        return draft, drafter, block

    def _drafted(self, draft: Draft, block: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """
        The token that no member has read and those drafted behind it, `(rows, block + 1)`; the logits of those who read while drafting,
        `(rows, block, width)` by reader; and the scores that tokens were chosen from, `(rows, block, vocab)`.
        """
        if (whole := drafted(self.reading, draft.drafter, self.scoring, draft.tokens[0], block)) is not None:
            self.rows.put_all(whole[0][:, 1:])
            return *whole, torch.empty(0)
        self._draft_on(draft, block)
        return draft.line, draft.logits(block), draft.proposed(block)

    def _draft_on(self, draft: Draft, block: int) -> None:
        """Draft until a block is full, or nothing is sure any more."""
        while (i := len(draft.read)) < block:
            draft.read.append(draft.drafter.step(draft.tokens[-1], i))
            draft.scores.append(self.scoring.proposed(draft.drafter, draft.read[-1], i, i + 1)[:, 0])
            choice = self.scoring.pick(draft.scores[-1], i)
            self.rows.put(i, choice)
            draft.tokens.append(choice[:, None])
            if self.settings.confidence:
                sure = draft.scores[-1].softmax(-1).gather(1, draft.tokens[-1]).squeeze(1)  # (rows,)
                if not bool((sure >= self.settings.confidence).any()):
                    break

    def _more(self, drafter: Drafter, block: int) -> int:
        """How many tokens, behind a block and the one after it, to draft while the others look at the block."""
        if not block or self.settings.confidence or not self._works_beside[drafter]:
            return 0
        who, size = self.schedule.next(len(self.open))
        longest = self.settings.max_length - min(self.rows.lengths[self.rows.present[i]] for i in self.open)
        room = self.rows.room if self.reading.keeps_shapes else min(self.rows.room, longest - 1)
        return max(0, min(size, room - block - 1)) if self.drafters[who] is drafter else 0

    def _look_and_draft(self, draft: Draft, tokens: torch.Tensor, others: list[str], upto: int) -> dict[str, torch.Tensor]:
        """Let the others read `tokens`, `(rows, n)`, and draft meanwhile; returns the logits of all for these, `(rows, n, width)`."""
        self._aside.mark()
        begun = self.reading.start(tokens, others, 0)
        try:
            with self._aside.work():
                self._draft_on(draft, upto)
        except BaseException:
            begun.abandon()
            raise
        return {**begun(), **draft.logits(tokens.shape[1])}

    # Common -------------------------------------------------------------------------------------------------------------

    def _bring_into_line(
        self, drafter: Drafter, kept: list[int], tokens: torch.Tensor, drafter_read: int, others_read: int
    ) -> None:
        """Let all forget what was rejected of `tokens`, `(rows, n)`, of which drafter and others have read the first ones."""
        read = {name: drafter_read if name in drafter.members else others_read for name in self.members.distinct}
        self.reading.settle(kept, tokens, read)
        drafter.settle(kept, tokens[:, :drafter_read])

    def _advance(
        self,
        kept: list[int],
        following: torch.Tensor,
        logits: torch.Tensor,
        scores: torch.Tensor,
        ending: list[list[bool]] | None = None,
        asked: Sequence[torch.Tensor] = (),
    ) -> tuple[list[int], list[int], list[Any]]:
        """
        Append what was kept and the token that follows; end the rows that a criterion ends, at the token where it does. Returns how many
        tokens every row got, the places of those that have not ended, and what was asked besides. `ending`, by row and token, is what
        tokens alone say, if that is known.
        """
        self.rows.put(sent([max(n, 0) for n in kept], following.device), following)
        appended, answers = [n + 1 for n in kept], []
        if ending is None or self.ends.see_texts:
            ending, *answers = self._look(self.ends.behind(max(appended)), *asked)
        staying = list(self.open)
        for i in self.open:
            length = self.rows.lengths[self.rows.present[i]]
            ends = (n for n in range(1, appended[i] + 1) if ending[i][n - 1] or self.ends.by_length(length + n))
            if (end := next(ends, None)) is not None:
                appended[i] = end
                staying.remove(i)
        if any(isinstance(processor, SomethingLeft) for processor in self.scoring.processors):
            refuse_marked(scores, self.rows.present, appended)
        for i, row in enumerate(self.rows.present):
            for store, values in ((self.scores, scores), (self.logits, logits)):
                if store is not None:
                    store[row] += list(values[i, : appended[i]])
            if self.streamer is not None:
                start = self.rows.lengths[row]
                self.streamer.put(self.rows.tokens[row, start : start + appended[i]].cpu())
        self.rows.go_on(appended)
        self.accounts.report.tokens += sum(appended)
        return appended, staying, answers

    def _keep(self, staying: list[int]) -> None:
        """Go on without the rows that have ended."""
        if self.reading.keeps_shapes:
            self.open = staying
        if self.reading.keeps_shapes or len(staying) == len(self.rows.present):
            return
        places = sent(staying, self.rows.tokens.device)
        self.rows.keep(staying)
        self.reading.keep(places)
        self.scoring.keep(places)
        for drafter in self.drafters:
            drafter.keep(places)
        self.open = list(range(len(staying)))

    def _look(self, *values: torch.Tensor) -> list[Any]:
        """As `scoring.look`. What was before it is over then."""
        found = self.scoring.look(*values)
        self.accounts.settle()
        return found

    def packed(self, generation_config: Any) -> Any:
        """What `generate` returns: rows padded on the right to one length, and everything that was asked for beside them."""
        self.reading.finish()
        longest = max(self.rows.lengths)
        self.cache.uneven = len({self.rows.lengths[row] for row in self.rows.present}) > 1
        pad = generation_config._pad_token_tensor
        sequences = self.rows.tokens[:, :longest].clone()
        for row, length in enumerate(self.rows.lengths):
            if length < longest:
                sequences[row, length:] = pad
        if not generation_config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(
            sequences=sequences, scores=_by_step(self.scores), logits=_by_step(self.logits), **{CACHE: self.cache}
        )


def _by_step(stored: list[list[torch.Tensor]] | None) -> tuple[torch.Tensor, ...] | None:
    """One (rows, vocab) for each step, as plain decoding has them; a row that has ended repeats its last."""
    if stored is None:
        return None
    steps = max(map(len, stored))
    return tuple(torch.stack([row[min(step, len(row) - 1)] for row in stored]) for step in range(steps))
