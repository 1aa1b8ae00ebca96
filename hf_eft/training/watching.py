"""What a trainer tells while it runs: losses, the held-out answers as they become, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..prompts import padded
from .chats import Example
from .record import Record

Progress = Callable[[int, int, str], None]


class Watching(TrainerCallback):
    r"""
    Notes in a record what a trainer tells, and writes it at each look at the held-out part.

    Args:
        model ([`EFTForTraining`]): What learns.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        asked (`Sequence[Example]`): The held-out examples whose prompts are answered.
        record ([`Record`]): Where it is noted.
        folder (`Path`): Where the record is written.
        max_new_tokens (`int`): How long an answer may be.
        progress (`Callable`, *optional*): Told the step, how many there are, and the losses.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        asked: Sequence[Example],
        record: Record,
        folder: Path,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._tokenizer, self._record, self._folder = model, tokenizer, record, folder
        self._max_new_tokens, self._progress = max_new_tokens, progress
        self._prompts = [list(example.ids[: example.prompt]) for example in asked]
        record.asked = [
            {
                "prompt": tokenizer.decode(example.ids[: example.prompt], skip_special_tokens=True).strip(),
                "expected": tokenizer.decode(example.ids[example.prompt :], skip_special_tokens=True).strip(),
            }
            for example in asked
        ]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if "loss" in (logs or {}):
            self._record.losses.append({"step": state.global_step, "loss": float((logs or {})["loss"])})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any) -> None:
        self.look(state.global_step, float((metrics or {})["eval_loss"]))

    def look(self, step: int, loss: float) -> None:
        """Note the loss of the held-out part, and how some of its prompts are answered."""
        self._record.held_out.append({"step": step, "loss": loss, "answers": self.answers()})
        self._record.write(self._folder)
        self._tell(step)

    def answers(self) -> list[str]:
        """How the prompts are answered now, greedily, each on its own."""
        said = []
        for prompt in self._prompts:
            inputs = {name: each.to(self._model.device) for name, each in padded([prompt], 0).items()}
            ids = self._model.generate(**inputs, do_sample=False, max_new_tokens=self._max_new_tokens)
            said.append(self._tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip())
        return said

    def _tell(self, step: int) -> None:
        if self._progress is None:
            return
        record = self._record
        told = [f"loss {record.losses[-1]['loss']:.3f}"] if record.losses else []
        told += [f"held-out {record.held_out[-1]['loss']:.3f}"] if record.held_out else []
        self._progress(step, record.total, ", ".join(told))
