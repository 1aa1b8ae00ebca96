"""From texts to what may follow them: each is read from the longest beginning whose state is known, all together."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .alphabet import Alphabet
from .covers import Covers
from .prompts import PromptReader
from .texts import State

STATES = 32  # texts a row whose states are kept, the latest: what a draft may roll back
_WIDTH = 4  # bytes of an id in a key

Key = tuple[int, bytes]  # where the prompt ends, and the ids of the text


class Asked(NamedTuple):
    """A text (its ids as int32, one after the other), where its prompt ends, and after how many of its ids the state is asked for."""

    content: bytes
    boundary: int
    lengths: Sequence[int]


@dataclass
class _Going:
    """A text on its way to the lengths that are asked for."""

    content: bytes  # its ids, `_WIDTH` bytes each
    boundary: int
    state: State
    at: int  # how many ids `state` has read, once nothing is pending
    pending: list[int]  # symbols of the prompt behind its last settled token, or of the id that is being read

    @property
    def key(self) -> Key:
        return self.boundary, self.content[: _WIDTH * self.at]

    @property
    def done(self) -> bool:
        return not self.pending and _WIDTH * self.at == len(self.content)

    def following(self, alphabet: Alphabet) -> int:
        """The next symbol to read, below 0 for a special id."""
        if not self.pending:
            self.at += 1
            own = self.content[_WIDTH * (self.at - 1) : _WIDTH * self.at]
            self.pending = list(alphabet.spelled(int.from_bytes(own, sys.byteorder, signed=True)))
        return self.pending.pop(0)


class Reader:
    r"""
    Answers with states, which are functions of a text and of where its prompt ends, and of nothing else.

    Args:
        covers ([`Covers`]): What reads symbols.
        prompts ([`PromptReader`]): What reads prompts.
        alphabet ([`Alphabet`]): Which symbols ids are.
    """

    def __init__(self, covers: Covers, prompts: PromptReader, alphabet: Alphabet) -> None:
        self.covers = covers
        self.prompts = prompts
        self.alphabet = alphabet
        self.states: OrderedDict[Key, State] = OrderedDict()
        self._answered: list[State] = []

    def reset(self) -> None:
        """Free the states."""
        self.states.clear()
        self._answered = []

    def know(self, boundary: int, content: bytes, state: State) -> None:
        """Keep the state of a text that was read elsewhere."""
        self.states[boundary, content] = state

    def read(self, asked: Sequence[Asked]) -> list[list[State]]:
        """The states after every length that is asked for, text by text. What is asked for twice is read once."""
        keys = [[_key(text, n) for n in text.lengths] for text in asked]
        found: dict[Key, State] = {}
        wanted = {}
        for text in asked:
            for n in {max(text.lengths), *(n for n in text.lengths if n < text.boundary)}:  # a part of a prompt is a prompt
                wanted[_key(text, n)] = min([n, *(m for m in text.lengths if m >= text.boundary)])
        going = self._begun(wanted)
        while going:
            for each in going:
                if not each.pending:
                    found[each.key] = self.states[each.key] = each.state
            going = [each for each in going if not each.done]
            self._step(going)
        while len(self.states) > STATES * len(asked):
            self.states.popitem(last=False)
        answers = [[found[key] if key in found else self.states[key] for key in row] for row in keys]
        for state in self._answered:
            state.said = None  # it is large, and found again if it is asked for
        self._answered = [state for row in answers for state in row]
        return answers

    def _begun(self, wanted: Mapping[Key, int]) -> list[_Going]:
        """The texts on their way to the shortest lengths that are asked for, from the longest beginning that is known, or the prompt."""
        going = {key: self._known(*key, shortest) for key, shortest in wanted.items()}
        fresh = [key for key, known in going.items() if known is None]
        if fresh:
            entered = self.prompts.enter([_ids(content[: _WIDTH * boundary]) for boundary, content in fresh])
            for (boundary, content), (state, pending) in zip(fresh, entered, strict=True):
                going[boundary, content] = _Going(content, boundary, state, boundary, pending)
        return [each for each in going.values() if each is not None]

    def _known(self, boundary: int, content: bytes, shortest: int) -> _Going | None:
        for n in range(shortest, max(boundary, shortest - STATES) - 1, -1):
            key = boundary, content[: _WIDTH * n]
            if key in self.states:
                self.states.move_to_end(key)
                return _Going(content, boundary, self.states[key], n, [])
        return None

    def _step(self, going: Sequence[_Going]) -> None:
        """One symbol more of every text."""
        following = [each.following(self.alphabet) for each in going]
        fresh = []
        for i, each in enumerate(going):
            if not each.pending and each.key in self.states:
                each.state = self.states[each.key]
            else:
                fresh.append(i)
        grown = self.covers.advance([going[i].state for i in fresh], [following[i] for i in fresh])
        for i, state in zip(fresh, grown, strict=True):
            going[i].state = state


def _key(text: Asked, length: int) -> Key:
    return min(text.boundary, length), text.content[: _WIDTH * length]


def _ids(content: bytes) -> list[int]:
    return torch.frombuffer(bytearray(content), dtype=torch.int32).tolist() if content else []
