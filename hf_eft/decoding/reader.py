"""Members that read tokens incrementally, keyed on content: whatever is asked, only what was not read before is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..members import prefix
from ..members.cache import EFTCache
from ..members.members import Members
from ..members.recurrent import is_recurrent
from ..members.roll_back import Mark
from ..members.sight import Sight

# How many (row, position) answers are kept for being asked again: assisted decoding asks for every drafted position twice.
_REMEMBERED = 32
# After how many tokens a cache that records its past drops what is older, and recurrent states are marked anew: the memory of recording,
# and how much is read again, bounded.
_SETTLE_AFTER = 64


class Reader:
    r"""
    Answers "what follows these tokens?" for a set of members, with the states of the last question at hand.

    The states are reconciled with each question by the tokens themselves: rows may be appended to, permuted, duplicated,
    dropped, rolled back or replaced. What cannot be reached from the states that are there is read from the start. Rolling
    back sliding windows and convolutions needs recorded states, and recurrent ones are put back as they were marked, and read again from
    there; both start at the first roll-back.

    Args:
        members ([`Members`]): The models to run.
    """

    def __init__(self, members: Members) -> None:
        self.members = members
        self._sights: Mapping[str, Sight] = {}
        self._recording = False
        self.reset()

    def reset(self) -> None:
        """Free the states."""
        self._cache: EFTCache | None = None
        self._keys: torch.Tensor | None = None  # (rows, length) of what the cache has read
        self._answers: dict[int, dict[str, torch.Tensor]] = {}  # by length
        self._marks: list[tuple[int, dict[str, Mark]]] = []  # by how many tokens had been read; two at most

    def _look(self, sights: Mapping[str, Sight]) -> None:
        """Go on with what was read only where it was seen with these pictures."""
        known, self._sights = self._sights, sights
        if sights is known:
            return
        if sights.keys() != known.keys() or not all(sight.shows(known[name]) for name, sight in sights.items()):
            self.reset()

    def _prompt_numbers(self, rows: int) -> torch.Tensor:
        """By row, which prompt of the call it goes on from."""
        return torch.arange(rows) // next(iter(self._sights.values())).expand

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, sights: Mapping[str, Sight] | None = None
    ) -> dict[str, torch.Tensor]:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): Every token so far.
            attention_mask (`torch.LongTensor` of shape `(rows, length)`, *optional*): 0 where a token is padding.
            sights (`Mapping[str, Sight]`, *optional*): What the members see of the call that asks.

        Returns:
            `dict[str, torch.Tensor]`: Each member's logits for the next token, `(rows, 1, vocab)`. Not to be written to.
        """
        asked = prefix.keys(input_ids, attention_mask)
        self._look(sights or {})
        if self._sights:  # rows of the same ids may see different pictures: the number of its prompt stands for what a row sees
            asked = asked.clone()
            asked[:, 0] = prefix.PADDING - 1 - self._prompt_numbers(len(asked)).to(asked.device)
        try:
            return self._read(input_ids, attention_mask, asked)
        except BaseException:
            self.reset()  # states that were half moved or half read serve nobody
            raise

    def _read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, asked: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The same, from tokens and what they are found by."""
        length = asked.shape[1]
        keep = self._reconcile(asked)
        if 0 < keep < max((sight.length for sight in self._sights.values()), default=0):
            self.reset()  # pictures are shown with the whole prompt
            keep = 0
        if keep == length and length in self._answers:
            return self._answers[length]
        keep = min(keep, length - 1)
        start = self._roll_back(keep)
        if self._cache is None:
            self._cache = self.members.new_cache()
            if self._recording and not self.members.stateful:
                self._cache.activate_past_recording()
        if start < keep and self._recording and self.members.stateful:
            # What both questions share is marked: a draft may be rejected again.
            self._step(input_ids, attention_mask, start, keep)
            self._cache.activate_past_recording()  # which layers are recurrent is known once they have read
            self._mark(keep)
            start = keep
        answer = self.members.logits(self._step(input_ids, attention_mask, start, length))
        self._keys = asked.clone()
        self._answers = {n: known for n, known in self._answers.items() if n <= keep}
        self._answers[length] = answer
        while len(self._answers) > max(1, _REMEMBERED // asked.shape[0]):
            del self._answers[min(self._answers)]
        return answer

    def _step(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, start: int, stop: int) -> dict[str, Any]:
        """Read the tokens from `start` to `stop`."""
        if attention_mask is None:
            positions = torch.arange(stop, device=input_ids.device).expand(input_ids.shape[0], -1)
        else:
            attention_mask = attention_mask[:, :stop]
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        caches = self._cache.members if self._cache is not None else {}
        own = {
            name: sight.inputs(input_ids[:, :stop], start, stop - start, caches[name], first=start == 0)
            for name, sight in self._sights.items()
        }
        return self.members.step(
            input_ids[:, start:stop],
            own={name: {key: value for key, value in inputs.items() if key != "input_ids"} for name, inputs in own.items()},
            attention_mask=attention_mask,
            position_ids=positions[:, start:],
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _mark(self, length: int) -> None:
        """Keep the recurrent states as they are after `length` tokens."""
        caches = self._cache.members if self._cache is not None else {}
        self._marks = [*self._marks[-1:], (length, {name: Mark(cache) for name, cache in caches.items()})]

    def _reconcile(self, asked: torch.Tensor) -> int:
        """Bring the rows into the order of the question; return how many tokens they share with it."""
        if self._keys is None or self._cache is None:
            return 0
        rows, keep = prefix.match(self._keys, asked)
        if keep == 0:
            self.reset()
        elif rows is not None and self._elsewhere():
            self.reset()
            return 0
        elif rows is not None:
            self._cache.reorder_cache(rows)
            for _, marks in self._marks:
                for mark in marks.values():
                    mark.select(rows)
            self._keys = self._keys[rows]
            self._answers.clear()
        return keep

    def _roll_back(self, keep: int) -> int:
        """Forget what was read after the first `keep` tokens; return how many are left to build on."""
        if self._keys is None or self._cache is None:
            return 0
        read = self._keys.shape[1]
        if read == keep:
            if self._recording and self._cache.unsettled_tokens > _SETTLE_AFTER:
                self._cache.crop(0)
                if self._marks:
                    self._mark(keep)
            return keep
        self._marks = [mark for mark in self._marks if mark[0] <= keep]
        start = self._marks[-1][0] if self._marks else keep
        if self._cache.can_crop(read - start, marked=bool(self._marks)):
            same = dict.fromkeys(self._cache.members, read - start)
            self._cache.roll_back(same, None, dict.fromkeys(same, 0))
            for name, mark in self._marks[-1][1].items() if self._marks else ():
                mark.put_back(self._cache.members[name])
            return start
        self._recording = not self._elsewhere()
        self.reset()
        return 0

    def _elsewhere(self) -> bool:
        """Whether a member keeps recurrent states in itself, where nobody can move them."""
        caches = self._cache.members if self._cache is not None else {}
        return any(not any(map(is_recurrent, caches[name].layers)) for name in self.members.stateful if name in caches)
