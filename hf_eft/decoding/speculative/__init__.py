"""Speculative decoding of the combination: a member drafts, the others look at the whole block in one pass each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from ...members.cache import EFTCache
from ...members.halfway import together
from ...members.releases import CACHE
from ...members.roll_back import Mark
from ..tokens_left import refuse_marked
from .drafting import Drafter
from .line import Line, apart
from .recurrent import read_again
from .schedule import Automatic, Fixed, Report
from .scoring import Scoring, joined


class Speculation:
    r"""
    One call of speculative decoding, after the prompt was read.

    Every round a drafter reads the last token and drafts a block; the other members read both in one pass each; every row keeps its
    longest agreed prefix and one token more. A member that drafts reads each token once: its logits while drafting are those that
    verification needs, and it reads the last drafted token only if some row keeps all (the bonus token). Without a draft, members read the
    last token as in plain decoding. Drafters that are members can take turns, round by round: their states are the target's.

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
        *,
        cache: EFTCache,
        lines: Mapping[str, Line],
        criteria: Any,
        streamer: Any,
        keep_scores: bool,
        keep_logits: bool,
    ) -> None:
        self.drafters, self.schedule, self.scoring = drafters, schedule, scoring
        self.members, self.settings, self.rows, self.cache = scoring.members, scoring.settings, scoring.rows, cache
        self.lines = lines  # by distinct member; members with one prompt share theirs
        self.criteria, self.streamer = criteria, streamer
        self.report = Report()
        self.scores: list[list[torch.Tensor]] | None = [[] for _ in self.rows.lengths] if keep_scores else None
        self.logits: list[list[torch.Tensor]] | None = [[] for _ in self.rows.lengths] if keep_logits else None

    def run(self, first: torch.Tensor) -> None:
        """Decode until every row has ended; `first` are the target's logits for the first token, `(rows, vocab)`."""
        scores = self.scoring.processed(first, 0)
        _, staying = self._advance([0] * self.rows.count, self.scoring.pick(scores, 0), first[:, None], scores[:, None])
        while staying:
            with together(self.cache):  # members that draft are ahead of the others until these have looked
                self._keep(staying)
                staying = self._round()

    def _round(self) -> list[int]:
        """Draft, verify, keep; returns the rows that have not ended, by their places among those present."""
        clock = [self._now()]
        drafter, block = self._plan()
        marks = self._marks(drafter) if block else {}
        tokens, read, proposed = self._draft(drafter, block)  # (rows, block + 1)
        block = tokens.shape[1] - 1
        clock.append(self._now())

        as_plain = block == 0 and self._saves_by_one_step(drafter)
        ahead = () if as_plain else drafter.members
        others = [name for name in self.members.distinct if name not in ahead]
        common = self.lines[self.members.main]
        outputs = self.members.step(
            tokens, attention_mask=common.seen(block + 1), position_ids=common.at(0, block + 1), cache=self.cache,
            use_cache=True, only=others, own=apart(self.lines, others, common, 0, block + 1),
        )  # fmt: skip
        looked = {**read, **{name: output.logits for name, output in outputs.items()}}
        logits, scores = self.scoring.target(looked, 0, block)  # (rows, block, vocab)
        kept, following = self.scoring.compare(tokens[:, 1:], proposed, scores)
        clock.append(self._now())

        whole = [n == block for n in kept]
        if read_all := any(whole) and not as_plain:
            last = drafter.step(tokens[:, -1:], block)
            looked |= joined([{name: looked[name] for name in last}, last]) if block else last
        clock.append(self._now())
        if any(whole):
            bonus_logits, bonus_scores = self.scoring.target(looked, block, block + 1)
            logits, scores = torch.cat([logits, bonus_logits], dim=1), torch.cat([scores, bonus_scores], dim=1)
            bonus = self.scoring.pick(bonus_scores[:, 0], block)
            following = torch.where(torch.tensor(whole, device=bonus.device), bonus, following)
        agreed = self._agreed(drafter, kept, block, looked, scores) if self.schedule.learns else []
        appended, staying = self._advance(kept, following, logits, scores)
        self._bring_into_line(drafter, [n - 1 for n in appended], tokens, tokens.shape[1] - 1 + (read_all or as_plain), marks)
        clock.append(self._now())
        self._account(drafter, block, kept, agreed, clock, read_all)
        return staying

    # Drafting -----------------------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[Drafter, int]:
        """Who drafts, and how many tokens."""
        # The row with most to go says how long a block may be: one that is nearly there must not hold up the others.
        shortest = min(self.rows.lengths[row] for row in self.rows.present)
        who, block = self.schedule.next(len(self.rows.present))
        return self.drafters[who], max(0, min(block, self.settings.max_length - shortest - 1))

    def _saves_by_one_step(self, drafter: Drafter) -> bool:
        """Whether members that read a token apart, those that draft and the others, take longer than all in one step, as without drafts."""
        others = set(self.members.distinct) - set(drafter.members)
        devices = {member.device for member in self.members.distinct.values()}  # several work at the same time
        together = self.members.passes(self.members.distinct)
        return bool(drafter.members) and (
            len(devices) > 1 or self.members.passes(drafter.members) + self.members.passes(others) > together
        )

    def _draft(self, drafter: Drafter, block: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """
        The token that no member has read and those drafted behind it, `(rows, block + 1)`; the logits of those who read while drafting,
        `(rows, block, width)` by reader; and the scores that tokens were chosen from, `(rows, block, vocab)`.
        """
        tokens, scores = [self.rows.last()], []
        read: list[dict[str, torch.Tensor]] = []
        while (i := len(read)) < block:
            read.append(drafter.step(tokens[-1], i))
            scores.append(self.scoring.proposed(drafter, read[-1], i, i + 1)[:, 0])
            choice = self.scoring.pick(scores[-1], i)
            self.rows.put(i, choice)
            tokens.append(choice[:, None])
            if self.settings.confidence:
                sure = scores[-1].softmax(-1).gather(1, tokens[-1]).squeeze(1)  # (rows,)
                if not bool((sure >= self.settings.confidence).any()):
                    break
        return torch.cat(tokens, dim=1), joined(read), torch.stack(scores, dim=1) if scores else torch.empty(0)

    def _agreed(
        self, drafter: Drafter, kept: list[int], block: int, looked: Mapping[str, torch.Tensor], scores: torch.Tensor
    ) -> list[list[float]]:
        """By drafter, how it agreed with the target at each position that was come to: who did not draft is asked what it would have."""
        agreed = []
        for each in self.drafters:
            if each is drafter and block:
                agreed.append([float(i < n) for n in kept for i in range(min(n + 1, block))])
                continue
            would = self.scoring.agreement(each, looked, scores[:, : max(1, block)])
            agreed.append([x for row, n in zip(would, kept, strict=True) for x in row[: n + 1]])
        return agreed

    # Common -------------------------------------------------------------------------------------------------------------

    def _marks(self, drafter: Drafter) -> dict[str, Mark]:
        """The recurrent states of every member that has any, as they are before a block."""
        drafter.mark()
        return {name: Mark(self.cache.members[name]) for name in self.members.stateful}

    def _bring_into_line(
        self, drafter: Drafter, kept: list[int], tokens: torch.Tensor, drafter_read: int, marks: Mapping[str, Mark]
    ) -> None:
        """Let every member forget what was rejected of `tokens`, `(rows, block + 1)`, of which the drafter has read the first ones."""
        block = tokens.shape[1] - 1
        counts = torch.tensor(kept, device=self.rows.tokens.device)
        drafted = tokens[:, :drafter_read]
        for name, mark in marks.items():
            read = drafted if name in drafter.members else tokens
            read_again(
                self.members.distinct[name], self.cache.members[name], mark, read, [n + 1 for n in kept], self.lines[name]
            )
        drafter.read_again(drafted, [n + 1 for n in kept])
        trims = {id(line): line.settle(counts) for line in self._distinct_lines()}
        most = max(kept)
        drop = block - most
        drafter_drop = drop - (block + 1 - drafter_read)
        drops = {name: drafter_drop if name in drafter.members else drop for name in self.members.distinct}
        shift = most - counts if len(set(kept)) > 1 else None
        self.cache.roll_back(drops, shift, {name: trims[id(self.lines[name])] for name in drops})
        drafter.roll_back(drafter_drop, shift, trims[id(drafter.line)])
        # Members that draft and members that look count apart: what all have read is what the caches hold.
        self.cache.seen_tokens = self.lines[self.members.main].columns

    def _distinct_lines(self) -> list[Line]:
        return list({id(line): line for line in self.lines.values()}.values())

    def _advance(
        self, kept: list[int], following: torch.Tensor, logits: torch.Tensor, scores: torch.Tensor
    ) -> tuple[list[int], list[int]]:
        """
        Append what was kept and the token that follows; end the rows that a criterion ends, at the token where it does. Returns how many
        tokens every row got, and the places of those that have not ended.
        """
        self.rows.put(torch.tensor(kept, device=following.device), following)
        appended = [n + 1 for n in kept]
        staying = list(range(len(kept)))
        for ahead in range(max(appended)):
            stop = self.rows.by_length(ahead + 1, lambda ids: self.criteria(ids, None)).tolist()
            for i in [i for i in staying if stop[i] and ahead < appended[i]]:
                appended[i] = ahead + 1
                staying.remove(i)
            if not any(ahead + 1 < appended[i] for i in staying):
                break
        refuse_marked(scores, self.rows.present, appended)
        for i, row in enumerate(self.rows.present):
            for store, values in ((self.scores, scores), (self.logits, logits)):
                if store is not None:
                    store[row] += list(values[i, : appended[i]])
            start = self.rows.lengths[row]
            self.rows.lengths[row] = end = start + appended[i]
            if self.streamer is not None:
                self.streamer.put(self.rows.tokens[row, start:end].cpu())
        self.report.tokens += sum(appended)
        return appended, staying

    def _keep(self, staying: list[int]) -> None:
        """Go on without the rows that have ended."""
        if len(staying) == len(self.rows.present):
            return
        places = torch.tensor(staying, device=self.rows.tokens.device)
        self.rows.keep(staying)
        self.cache.reorder_cache(places)  # `batch_select_indices` leaves the states of convolutions as they are
        self.scoring.keep(places)
        for drafter in self.drafters:
            drafter.keep(places)
        for line in self._distinct_lines():
            line.keep(places)

    def _now(self) -> float:
        if self.rows.tokens.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def _account(
        self, drafter: Drafter, block: int, kept: list[int], agreed: list[list[float]], clock: list[float], read_all: bool
    ) -> None:
        start, drafted, verified, read, end = clock
        self.report.count(drafter.name, block, kept, {each.name: a for each, a in zip(self.drafters, agreed, strict=False)})
        self.report.bonus_steps += int(read_all)
        self.report.drafting += drafted - start + (read - verified)
        self.report.verifying += (verified - drafted) + (end - read)
        steps = block + int(read_all)
        step = (drafted - start + read - verified) / steps if steps and drafter.costs else 0.0
        self.schedule.record(self.drafters.index(drafter), block, kept, agreed, step, (verified - drafted) + (end - read))

    def packed(self, generation_config: Any) -> Any:
        """What `generate` returns: rows padded on the right to one length, and everything that was asked for beside them."""
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
