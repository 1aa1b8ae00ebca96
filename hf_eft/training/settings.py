"""What a tuning run is asked for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

STRENGTHS = (1.0, 1.25, 1.5)  # of use, times the strength in training
# What LoRA and all weights of a small model are commonly trained at.
_LORA_RATE, _FULL_RATE = 2e-4, 2e-5


@dataclass(frozen=True)
class Settings:
    r"""
    How a delta learns.

    Args:
        alpha (`float`, *optional*, defaults to 0.5): The strength in training. Well below 1: docs/tuning.md says why.
        lora_r (`int`, *optional*): The rank of a LoRA adapter on the reference, on all linear layers. Without it, a copy of the reference
            learns, all weights of it.
        epochs (`float`, *optional*, defaults to 3): How often each answer is shown, where `steps` says nothing.
        steps (`int`, *optional*): How many times the weights are changed.
        batch_size (`int`, *optional*, defaults to 8): Examples that are read together.
        accumulation (`int`, *optional*, defaults to 1): How many such batches are one step.
        learning_rate (`float`, *optional*): The highest, after a tenth of the steps, but 100 at most; then a cosine to 0. By default
            2e-4 for LoRA, 2e-5 for all weights.
        max_length (`int`, *optional*, defaults to 1024): The most tokens of an example.
        replay_share (`float`, *optional*, defaults to 0.5): The share of replayed documents in each step, where there are any.
        evaluations (`int`, *optional*, defaults to 8): How often the held-out part is looked at, and a checkpoint kept.
        patience (`int`, *optional*, defaults to 3): How many of these may pass without a lower loss before it stops; 0 for never. What
            is kept is what was best.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): Less memory for the learner, more time.
        shown (`int`, *optional*, defaults to 3): How many held-out prompts are answered each time.
        max_new_tokens (`int`, *optional*, defaults to 48): How long those answers may be.
        seed (`int`, *optional*, defaults to 0): Of the order, of what is held out, and of the adapter's first weights.

    Raises:
        `ValueError`: If a value says nothing that can be done.
    """

    alpha: float = 0.5
    lora_r: int | None = None
    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float | None = None
    max_length: int = 1024
    replay_share: float = 0.5
    evaluations: int = 8
    patience: int = 3
    gradient_checkpointing: bool = False
    shown: int = 3
    max_new_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("alpha", "epochs", "learning_rate", "replay_share"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be a finite number above 0, got {value}.")
        if self.replay_share >= 1:
            raise ValueError(f"`replay_share` must be below 1, got {self.replay_share:g}: nothing else would be learnt.")
        for name in ("lora_r", "steps", "batch_size", "accumulation", "max_length", "evaluations", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be a whole number from 1 on, got {value!r}.")
        for name in ("patience", "shown"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")

    @property
    def per_step(self) -> int:
        """Examples of a step."""
        return self.batch_size * self.accumulation

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _FULL_RATE if self.lora_r is None else _LORA_RATE

    def steps_for(self, answers: int, replayed: int) -> int:
        """How many steps there are, with this many answers to show and this many documents in each step."""
        return self.steps or max(1, math.ceil(self.epochs * answers / (self.per_step - replayed)))

    def identity(self) -> dict[str, Any]:
        """What the result depends on, by the name that the command line has for it. How a step is cut up is no part of it."""
        left_out = ("batch_size", "accumulation", "gradient_checkpointing", "learning_rate")
        found = {key: value for key, value in dataclasses.asdict(self).items() if key not in left_out}
        return {**found, "examples of a step": self.per_step, "learning_rate": self.rate}
