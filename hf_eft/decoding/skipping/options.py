"""What a call asks of skipping, and what it did."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Skipping:
    r"""
    Members are left out of a step of `generate` where they cannot change its choice, and read what they missed in one block when they are
    needed again.

    Without arguments a member is left out only where that is proved, under greedy decoding, sampling and beams alike: its coefficient is 0
    in every row, or a rule that reads the base alone says so, or the truncation by the base leaves one token, or the end of a phase is
    certain. The other two cases are for greedy
    decoding, where the base leads by more than the other members can make up for; `bound` and `recent` exclude each other.

    Args:
        bound (`float`, *optional*):
            What you know of the members' terms together, in nats: between any two tokens they move the difference of log-probabilities by
            no more than this. Exact if it holds, which is not checked.
        recent (`int`, *optional*):
            **Approximate.** The bound is taken from the last so many steps in which all members were run: the most by which they moved the
            strongest other token towards the base's choice. Tokens may differ from those without skipping.
        factor (`float`, *optional*, defaults to 1): That many times as much, with `recent`.

    Raises:
        `ValueError`: If one of them is out of its range, or both bounds are given.

    Example:

    ```python
    >>> from hf_eft import Combination, EFTForCausalLM, Truncation, tiny

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> recipe = Combination.emulate(alpha=1.0, truncation=Truncation("base", 0.9))
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=recipe)
    >>> inputs = tokenizer("Question: What does Oscar Palmer enjoy?\nAnswer:", return_tensors="pt", return_token_type_ids=False)
    >>> ids = model.generate(**inputs, max_new_tokens=12, skipping=True)
    >>> model.skipping.forwards["tuned"] < model.skipping.steps
    True
    ```
    """

    bound: float | None = None
    recent: int | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.bound is not None and self.recent is not None:
            raise ValueError(
                f"Give `bound`, which you know, or `recent`, which estimates one: got {self.bound!r} and {self.recent!r}."
            )
        for name, least in (("bound", 0.0), ("factor", 0.0)):
            value = getattr(self, name)
            if value is None and name == "bound":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
                raise ValueError(f"`{name}` of `Skipping` must be a number from 0 on, got {value!r:.80}.")
        if self.recent is not None and (type(self.recent) is not int or self.recent < 1):
            raise ValueError(f"`recent` of `Skipping` must be a number of steps, 1 or more, got {self.recent!r:.80}.")
        if self.factor != 1.0 and self.recent is None:
            raise ValueError(
                f"`factor` of `Skipping` multiplies what `recent` estimates: give `recent` too, got {self.factor!r}."
            )

    @classmethod
    def of(cls, given: Any) -> Skipping | None:
        """What a call asks for: `True` for what is proved, nothing for `None` and `False`."""
        if given is None or given is False:
            return None
        if given is True:
            return cls()
        if not isinstance(given, cls):
            raise TypeError(f"`skipping` must be `True`, `False` or a `Skipping(...)`, got {type(given).__name__}.")
        return given

    @property
    def by_lead(self) -> bool:
        """Whether the base's lead is looked at."""
        return self.bound is not None or self.recent is not None


@dataclass
class Report:
    r"""
    What skipping did in a call of `generate`.

    Args:
        steps (`int`): How often the first member was run: once for the prompt, and for every token but the last.
        forwards (`dict[str, int]`): By distinct member, how often it was run.
        skipped (`dict[str, dict[str, int]]`):
            By member, in how many steps it was left out, and why: `"coefficients"`, `"certain"`, `"rule"`, `"truncation"`, `"bound"` or
            `"recent"`.
        blocks (`dict[str, list[int]]`): By member, how many tokens that it had missed it read before others, each time.
    """

    steps: int = 0
    forwards: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    blocks: dict[str, list[int]] = field(default_factory=dict)

    @property
    def saved(self) -> dict[str, float]:
        """By member, the share of its forwards that was saved."""
        return {name: 1 - forwards / max(1, self.steps) for name, forwards in self.forwards.items()}

    def begin(self, names: Collection[str]) -> None:
        """Count those of these members."""
        for name in names:
            self.forwards[name], self.skipped[name], self.blocks[name] = 0, {}, []

    def leave_out(self, name: str, why: str) -> None:
        """Count a step that a member was left out of."""
        self.skipped[name][why] = self.skipped[name].get(why, 0) + 1
