"""Speculative decoding of the combination: a member drafts, the others look at the whole block in one pass each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from ...members.cache import EFTCache
from ...members.halfway import together
from ...members.members import Members
from ...members.releases import CACHE
from ...members.roll_back import Mark
from ...recipe.combination import Combination
from ...recipe.combine import combine
from ..tokens_left import refuse_marked
from .coupling import accept_equal, accept_ratio
from .drafting import Drafter
from .line import Line
from .recurrent import read_again
from .request import Settings
from .rows import Rows
from .schedule import Automatic, Fixed, Report


class Speculation:
    r"""
    One call of speculative decoding, after the prompt was read.

    Every round the drafter reads the last token and drafts a block; the other members read both in one pass each; every row keeps its
    longest agreed prefix and one token more. A member that drafts reads each token once: its logits while drafting are those that
    verification needs, and it reads the last drafted token only if some row keeps all (the bonus token).

    Rows accept different lengths. Their states are kept in line on the right: a row that keeps fewer tokens is moved to the right, and
    what is padding in all rows is dropped, so that caches hold no rejected tokens. Recurrent states cannot forget: where a row keeps not
    all that was read, they are put back to where the block began, and what the row keeps is read again. Rows that end leave the batch, and
    cost nothing more: where the text says `rows`, it means those that are present.
    """

    def __init__(
        self,
        members: Members,
        combination: Combination,
        drafter: Drafter,
        schedule: Fixed | Automatic,
        settings: Settings,
        *,
        cache: EFTCache,
        rows: Rows,
        lines: Mapping[str, Line],
        coefficients: torch.Tensor | None,
        processors: Any,
        criteria: Any,
        streamer: Any,
        keep_scores: bool,
        keep_logits: bool,
    ) -> None:
        self.members, self.combination, self.drafter, self.schedule = members, combination, drafter, schedule
        self.settings, self.cache, self.rows = settings, cache, rows
        self.lines = lines  # by distinct member; members with one prompt share theirs
        self.coefficients, self.processors, self.criteria, self.streamer = coefficients, processors, criteria, streamer
        self.report = Report()
        self.scores: list[list[torch.Tensor]] | None = [[] for _ in rows.lengths] if keep_scores else None
        self.logits: list[list[torch.Tensor]] | None = [[] for _ in rows.lengths] if keep_logits else None

    def run(self, first: torch.Tensor) -> None:
        """Decode until every row has ended; `first` are the target's logits for the first token, `(rows, vocab)`."""
        scores = self._processed(first, 0)
        _, staying = self._advance([0] * self.rows.count, self._pick(scores, 0), first[:, None], scores[:, None])
        while staying:
            with together(self.cache):  # a member that drafts is ahead of the others until they have looked
                self._keep(staying)
                staying = self._round()

    def _round(self) -> list[int]:
        """Draft, verify, keep; returns the rows that have not ended, by their places among those present."""
        clock = [self._now()]
        block = self._block()
        marks = self._marks() if block else {}
        pending = self.rows.last()
        drafted, draft_logits, draft_scores = self._draft(pending, block)
        block = len(drafted)
        clock.append(self._now())

        tokens = torch.cat([pending, *drafted], dim=1)  # (rows, block + 1)
        others = [name for name in self.members.distinct if name != self.drafter.member]
        common, drafting = self.lines[self.members.main], self._line()
        outputs = self.members.step(
            tokens, attention_mask=common.seen(block + 1), position_ids=common.at(0, block + 1), cache=self.cache,
            use_cache=True, only=others, own=self._own(others, block + 1),
        )  # fmt: skip
        logits, scores = self._target(outputs, draft_logits, 0, block)  # (rows, block, vocab)
        kept, following = self._compare(tokens[:, 1:], draft_scores, scores)
        clock.append(self._now())

        whole = [n == block for n in kept]
        if read_all := any(whole):
            last = self.drafter.step(tokens[:, -1:], drafting.seen(block + 1), drafting.at(block, block + 1))
            draft_logits.append(last)
        clock.append(self._now())
        if read_all:
            bonus_logits, bonus_scores = self._target(outputs, draft_logits[-1:], block, block + 1)
            logits, scores = torch.cat([logits, bonus_logits], dim=1), torch.cat([scores, bonus_scores], dim=1)
            bonus = self._pick(bonus_scores[:, 0], block)
            following = torch.where(torch.tensor(whole, device=bonus.device), bonus, following)
        agreed = self._agreed(kept, block, draft_logits, following)
        appended, staying = self._advance(kept, following, logits, scores)
        self._bring_into_line([n - 1 for n in appended], tokens, read_all, marks)
        clock.append(self._now())
        self._account(block, kept, agreed, clock, read_all)
        return staying

    # Drafting -----------------------------------------------------------------------------------------------------------

    def _block(self) -> int:
        # The row with most to go says how long a block may be: one that is nearly there must not hold up the others.
        shortest = min(self.rows.lengths[row] for row in self.rows.present)
        return max(0, min(self.schedule.next(len(self.rows.present)), self.settings.max_length - shortest - 1))

    def _draft(self, token: torch.Tensor, block: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Tokens (rows, 1), the drafter's logits (rows, 1, vocab) and what processors made of them (rows, vocab), for each position."""
        tokens: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        scores: list[torch.Tensor] = []
        while len(tokens) < block:
            i = len(tokens)
            logits.append(self.drafter.step(token, self._line().seen(i + 1), self._line().at(i, i + 1)))
            scores.append(self._processed(self._proposed(logits[-1][:, 0]), i))
            choice = self._pick(scores[-1], i)
            self.rows.put(i, choice)
            token = choice[:, None]
            tokens.append(token)
            if self.settings.confidence:
                sure = scores[-1].softmax(-1).gather(1, token).squeeze(1)  # (rows,)
                if not bool((sure >= self.settings.confidence).any()):
                    break
        return tokens, logits, scores

    def _proposed(self, logits: torch.Tensor) -> torch.Tensor:
        """A drafter's logits, `(rows, its width)`, as the target's are: for as many tokens, without those that are never generated."""
        vocabulary = self.members.vocabulary
        return vocabulary.widen(vocabulary.cut(logits).float(), self.members.vocab_size)

    # Verifying ----------------------------------------------------------------------------------------------------------

    def _target(
        self, outputs: dict[str, Any], draft_logits: list[torch.Tensor], start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The combination's logits for the positions of the block from `start` to `stop`, and what processors make of them."""
        part = {name: output.logits[:, start:stop] for name, output in outputs.items()}
        if start == stop:
            logits = self.rows.tokens.new_empty((len(self.rows.present), 0, self.members.vocab_size), dtype=torch.float32)
            return logits, logits
        if self.drafter.member is not None:
            part[self.drafter.member] = torch.cat(draft_logits[: stop - start], dim=1)
        logits = combine(self.members.by_name(part), self.combination, self._coefficients(start, stop))
        logits = self.members.vocabulary.widen(logits, self.members.vocab_size)
        if not self.processors:
            return logits, logits
        return logits, torch.stack([self._processed(logits[:, i - start], i) for i in range(start, stop)], dim=1)

    def _coefficients(self, start: int, stop: int) -> torch.Tensor | None:
        """Those of the call, or the schedule's where every row has come to: `(rows, stop - start, members)`."""
        if self.coefficients is not None or not self.combination.scheduled:
            return self.coefficients
        places = [n for row in zip(*(self.rows.generated(i) for i in range(start, stop)), strict=True) for n in row]
        return self.combination.at(places, self.members.names).view(len(self.rows.present), stop - start, -1)

    def _compare(
        self, drafted: torch.Tensor, draft_scores: list[torch.Tensor], scores: torch.Tensor
    ) -> tuple[list[int], torch.Tensor]:
        """How many drafted tokens each row keeps, and the token that takes the place of the first one that it does not."""
        block = drafted.shape[1]
        if block == 0:
            return [0] * len(drafted), drafted.new_zeros(len(drafted))
        if self.settings.do_sample and self.settings.noise is None:
            kept, following = accept_ratio(drafted, torch.stack(draft_scores, dim=1).softmax(-1), scores.softmax(-1))
        else:
            if self.settings.do_sample:
                wanted = torch.stack([self._pick(scores[:, i], i) for i in range(block)], dim=1)  # (rows, block)
            else:
                wanted = scores.argmax(-1)
            kept = accept_equal(drafted, wanted)
            following = wanted.gather(1, kept.clamp(max=block - 1)[:, None]).squeeze(1)
        return kept.tolist(), following

    def _agreed(self, kept: list[int], block: int, draft_logits: list[torch.Tensor], following: torch.Tensor) -> list[float]:
        """Whether the drafter agreed with the target, for each position that was looked at."""
        if block:
            return [float(i < n) for n in kept for i in range(min(n + 1, block))]
        return [float(same) for same in (draft_logits[0][:, 0].argmax(-1) == following).tolist()]

    # Common -------------------------------------------------------------------------------------------------------------

    def _processed(self, logits: torch.Tensor, ahead: int) -> torch.Tensor:
        """What processors and warpers make of the logits, `(rows, vocab)`, for the token `ahead` tokens behind each row."""
        if not self.processors:
            return logits
        return self.rows.by_length(ahead, lambda ids: self.processors(ids, self.rows.among_all(logits)))

    def _pick(self, scores: torch.Tensor, ahead: int) -> torch.Tensor:
        if not self.settings.do_sample:
            return scores.argmax(-1)
        if self.settings.noise is not None:
            return self.settings.noise.pick(scores, self.rows.generated(ahead), self.rows.present)
        return torch.multinomial(scores.softmax(-1), 1).squeeze(1)

    def _line(self) -> Line:
        """Where the drafter reads: with the member that it is, or with the prompt of the call."""
        return self.lines[self.drafter.member or self.members.main]

    def _own(self, names: list[str], more: int) -> dict[str, dict[str, Any]]:
        """Masks and positions of the members that have a prompt of their own."""
        common = self.lines[self.members.main]
        return {
            name: {"attention_mask": self.lines[name].seen(more), "position_ids": self.lines[name].at(0, more)}
            for name in names
            if self.lines[name] is not common
        }

    def _marks(self) -> dict[str, Mark]:
        """The recurrent states of every member that has any, as they are before a block."""
        self.drafter.mark()
        return {name: Mark(self.cache.members[name]) for name in self.members.stateful}

    def _bring_into_line(self, kept: list[int], tokens: torch.Tensor, read_all: bool, marks: Mapping[str, Mark]) -> None:
        """Let every member forget what was rejected of `tokens`, `(rows, block + 1)`."""
        block = tokens.shape[1] - 1
        counts = torch.tensor(kept, device=self.rows.tokens.device)
        drafted = tokens if read_all else tokens[:, :-1]  # what the drafter has read
        for name, mark in marks.items():
            read = drafted if name == self.drafter.member else tokens
            read_again(
                self.members.distinct[name], self.cache.members[name], mark, read, [n + 1 for n in kept], self.lines[name]
            )
        self.drafter.read_again(drafted, [n + 1 for n in kept], self._line())
        trims = {id(line): line.settle(counts) for line in self._distinct_lines()}
        most = max(kept)
        drop = block - most
        drafter_drop = drop if read_all else drop - 1
        drops = {name: drafter_drop if name == self.drafter.member else drop for name in self.members.distinct}
        shift = most - counts if len(set(kept)) > 1 else None
        self.cache.roll_back(drops, shift, {name: trims[id(self.lines[name])] for name in drops})
        self.drafter.roll_back(drafter_drop, shift, trims[id(self._line())])
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
        self.drafter.keep(places)
        for line in self._distinct_lines():
            line.keep(places)
        if self.coefficients is not None:
            self.coefficients = self.coefficients[places]

    def _now(self) -> float:
        if self.rows.tokens.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def _account(self, block: int, kept: list[int], agreed: list[float], clock: list[float], read_all: bool) -> None:
        start, drafted, verified, read, end = clock
        self.report.count(block, kept)
        self.report.bonus_steps += int(read_all)
        self.report.drafting += drafted - start + (read - verified)
        self.report.verifying += (verified - drafted) + (end - read)
        steps = block + int(read_all)
        step = (drafted - start + read - verified) / steps if steps and self.drafter.costs else 0.0
        self.schedule.record(block, kept, agreed, step, (verified - drafted) + (end - read))

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
