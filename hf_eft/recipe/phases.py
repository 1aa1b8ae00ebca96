"""Phases of a text: where it thinks and where it answers, by the tokens that begin and end a phase. Functions of tokens, no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

BASE = "base"
TUNED = "tuned"
REFERENCE = "reference"

ANSWER = "answer"  # what is in no phase
_KEYS = {"name", "start", "end", "budget", "spelled"}


@dataclass(frozen=True)
class Phase:
    r"""
    A part of a text, from a marker that begins it to one that ends it. What is in no phase is `"answer"`.

    Which phase a token is in depends on the tokens of its row alone, the prompt's included: chat templates open one at the end of the
    prompt, and a text that is continued goes on where it was. Within a phase only the marker that ends it counts. The marker that begins
    a phase is read before it and chosen outside of it; the one that ends it is chosen within it.

    Args:
        name (`str`, *optional*, defaults to `"think"`): What coefficients call it.
        start (`str` or `Sequence[int]`, *optional*, defaults to `"<think>"`):
            What begins it: a text, which is one token of the tokenizer or what it makes of the text alone; or the tokens.
        end (`str` or `Sequence[int]`, *optional*, defaults to `"</think>"`): What ends it.
        budget (`int`, *optional*):
            How many tokens it may have. After so many, what is missing of `end` follows with certainty.
        spelled (`Sequence[Sequence[str]]`, *optional*):
            How the tokenizer spells the tokens of `start` and of `end` that were given as tokens. Saved with them: another tokenizer is
            refused.

    Raises:
        `ValueError`: If a marker is empty, or the budget no number of tokens.

    Example:

    ```python
    >>> from hf_eft import Combination, Phase

    >>> print(Combination.emulate(alpha={"think": 1.2, "answer": 0.6}, phases=[Phase(budget=512)]))
    base + (think: 1.2, answer: 0.6) tuned + (think: -1.2, answer: -0.6) reference, think: '<think>' to '</think>', 512 tokens at most
    ```
    """

    name: str = "think"
    start: str | Sequence[int] = "<think>"
    end: str | Sequence[int] = "</think>"
    budget: int | None = None
    spelled: Sequence[Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name == ANSWER:
            raise ValueError(f"The name of a phase must be an identifier other than {ANSWER!r}, got {self.name!r:.80}.")
        for which in ("start", "end"):
            object.__setattr__(self, which, _marker(self.name, which, getattr(self, which)))
        if self.start == self.end:
            raise ValueError(f"The phase {self.name!r} begins and ends with {self.start!r}: its markers must differ.")
        if self.budget is not None and (isinstance(self.budget, bool) or not isinstance(self.budget, int) or self.budget < 0):
            raise ValueError(f"The budget of the phase {self.name!r} must be a number of tokens, got {self.budget!r:.80}.")
        if self.spelled is not None:
            object.__setattr__(self, "spelled", _spelled(self.name, self.spelled))

    def __str__(self) -> str:
        most = "" if self.budget is None else f", {self.budget} tokens at most"
        return f"{self.name}: {_quoted(self.start)} to {_quoted(self.end)}{most}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description, without what is left out."""
        marks = {
            which: mark if isinstance(mark, str) else list(mark) for which, mark in (("start", self.start), ("end", self.end))
        }
        more = {} if self.budget is None else {"budget": self.budget}
        spelled = {} if self.spelled is None else {"spelled": [list(tokens) for tokens in self.spelled]}
        return {"name": self.name, **marks, **more, **spelled}

    @classmethod
    def from_dict(cls, description: Any) -> Phase:
        """The phase that [`Phase.to_dict`] described."""
        if not isinstance(description, Mapping) or not {"name", "start", "end"} <= set(description) <= _KEYS:
            raise ValueError(f"A phase must have `name`, `start` and `end`, and may have `budget`, got {description!r:.200}.")
        return cls(**description)


class State(NamedTuple):
    """Where a row stands: in which phase (0 for none), after how many of its tokens, and what of the last tokens may begin a marker."""

    phase: int = 0
    length: int = 0
    tail: tuple[int, ...] = ()


OUTSIDE = State()


class Markers:
    r"""
    The phases of a recipe as tokens.

    Args:
        phases (`Sequence[Phase]`): The phases. Those that are given as texts need a tokenizer.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Says which tokens the markers are. Its end-of-text token ends every phase: what a user writes of one in a message does not
            reach into the answer.

    Raises:
        `ValueError`: If there is no tokenizer, it does not know a marker, or it is another than that which a marker was saved with.
    """

    def __init__(self, phases: Sequence[Phase], tokenizer: Any = None) -> None:
        self.names = (ANSWER, *(phase.name for phase in phases))
        self.budgets = [phase.budget for phase in phases]
        self.starts = [_tokens(phase, 0, tokenizer) for phase in phases]
        self.ends = [_tokens(phase, 1, tokenizer) for phase in phases]
        self.ended_by = getattr(tokenizer, "eos_token_id", None)
        # Of two markers that are complete at once the longer one counts.
        self._starts = sorted(enumerate(self.starts, 1), key=lambda each: -len(each[1]))
        self._before = max(map(len, self.starts)) - 1

    @property
    def budgeted(self) -> bool:
        """Whether a phase has a budget."""
        return any(budget is not None for budget in self.budgets)

    def after(self, state: State, token: int) -> State:
        """Where a row stands after a token more."""
        tail = (*state.tail, token)
        if state.phase:
            end = self.ends[state.phase - 1]
            if tail[-len(end) :] == end or token == self.ended_by:
                return OUTSIDE
            return State(state.phase, state.length + 1, _last(tail, len(end) - 1))
        for phase, start in self._starts:
            if tail[-len(start) :] == start:
                return State(phase)
        return State(0, 0, _last(tail, self._before)) if self._before and token != self.ended_by else OUTSIDE

    def certain(self, state: State) -> int:
        """The token that must follow, -1 where none must."""
        if not state.phase or (budget := self.budgets[state.phase - 1]) is None or state.length < budget:
            return -1
        end = self.ends[state.phase - 1]
        # What is written of the marker already is not written again.
        return end[next(n for n in range(len(state.tail), -1, -1) if state.tail[len(state.tail) - n :] == end[:n])]


def _last(tail: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tail[max(0, len(tail) - count) :]


def _marker(phase: str, which: str, given: Any) -> str | tuple[int, ...]:
    if isinstance(given, str) and given:
        return given
    if isinstance(given, Sequence) and given and all(type(token) is int and token >= 0 for token in given):
        return tuple(given)
    raise ValueError(f"`{which}` of the phase {phase!r} must be a text or a list of tokens, and not empty, got {given!r:.80}.")


def _spelled(phase: str, given: Any) -> tuple[tuple[str, ...], ...]:
    marks = list(given) if isinstance(given, Sequence) else []
    if len(marks) == 2 and all(isinstance(each, Sequence) and all(isinstance(token, str) for token in each) for each in marks):
        return tuple(map(tuple, marks))
    raise ValueError(f"`spelled` of the phase {phase!r} must be the tokens of its two markers, as texts, got {given!r:.80}.")


def _quoted(mark: str | Sequence[int]) -> str:
    return repr(mark) if isinstance(mark, str) else repr(list(mark))


def speller(tokenizers: Mapping[str, Any]) -> Any:
    """Whose tokenizer says which tokens markers are: a tuned member's, where there is one. `None` if there is none."""
    known = {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer is not None}
    tuned = [name for name in known if name not in (BASE, REFERENCE)]
    return known[[*tuned, *known][0]] if known else None


def spelled(phase: Phase, tokenizer: Any) -> tuple[tuple[str, ...], ...] | None:
    """How a tokenizer spells the markers of a phase that are given as tokens; `None` if none is."""
    marks = [
        () if isinstance(mark, str) else tuple(map(str, tokenizer.convert_ids_to_tokens(list(mark))))
        for mark in (phase.start, phase.end)
    ]
    return tuple(marks) if any(marks) else None


def _tokens(phase: Phase, which: int, tokenizer: Any) -> tuple[int, ...]:
    """The tokens of the marker that begins a phase (0) or ends it (1)."""
    mark = (phase.start, phase.end)[which]
    if not isinstance(mark, str):
        if tokenizer is not None and phase.spelled is not None:
            now = (spelled(phase, tokenizer) or ((), ()))[which]
            if now != tuple(phase.spelled[which]):
                raise ValueError(
                    f"The tokens {list(mark)} of the phase {phase.name!r} were {list(phase.spelled[which])} in the tokenizer that they "
                    f"were saved with, and are {list(now)} in this one. Give the phase anew, as texts or with this tokenizer's tokens."
                )
        return tuple(map(int, mark))
    if tokenizer is None:
        raise ValueError(
            f"The phase {phase.name!r} has the marker {mark!r}, and no tokenizer says which tokens that is. Give the members' "
            "`tokenizers`, or the tokens themselves: `Phase(start=[...], end=[...])`."
        )
    whole = tokenizer.convert_tokens_to_ids(mark)
    if whole is not None and tokenizer.convert_ids_to_tokens(whole) == mark:
        return (whole,)
    found = tuple(tokenizer.encode(mark, add_special_tokens=False))
    if not found or tokenizer.unk_token_id in found or tokenizer.decode(list(found)).strip() != mark.strip():
        raise ValueError(
            f"The tokenizer does not know the marker {mark!r} of the phase {phase.name!r}: it makes {tokenizer.decode(list(found))!r} "
            "of it. Name the markers that the model writes: `Phase(start=..., end=...)`."
        )
    return found


def check_phases(phases: Sequence[Phase], values: Mapping[str, Any]) -> None:
    """Raise unless coefficients by phase, of `values` by member, say what they are in every phase, and in no other."""
    names = [phase.name for phase in phases]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"Two phases are called {repeated.pop()!r}.")
    marks = [phase.start for phase in phases]
    if repeated_marks := [mark for mark in marks if marks.count(mark) > 1]:
        raise ValueError(f"Two phases begin with {repeated_marks[0]!r}: which of them does?")
    for name, value in values.items():
        if isinstance(value, Mapping) and set(value) != {ANSWER, *names}:
            raise ValueError(
                f"The coefficient of the member {name!r} must be a number in each of the phases {[*names, ANSWER]}, got {dict(value)}. "
                "Phases of other names are described with `phases=[Phase(name, start, end), ...]`."
            )
