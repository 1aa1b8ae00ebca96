"""Train the families of the replication: for each seed, three sizes, each before fine-tuning and with both behaviours."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from behaviours import BEHAVIOURS, ReplicationWorld
from make_tiny import finetune, make_model, make_tokenizer, pretrain

SIZES: dict[str, dict[str, int]] = {
    "small": {"layers": 2, "width": 16, "heads": 2},
    "medium": {"layers": 4, "width": 32, "heads": 2},
    "large": {"layers": 8, "width": 64, "heads": 4},
}
# Small models take larger steps.
_PEAKS = {"small": 5e-3, "medium": 3e-3, "large": 1.5e-3}
_TUNING_PEAK = 0.6  # of the pre-training's
SECONDS = "seconds.json"  # beside a model, what training it took


@dataclass(frozen=True)
class Effort:
    """How long everything is trained."""

    pretraining_steps: int = 3000
    tuning_steps: int = 700
    people: int = 240


QUICK = Effort(pretraining_steps=1200, people=100)


def trained(where: Path, train: Callable[[], Any], need: Callable[[], Any]) -> None:
    """
    Train a model into a folder, if it is not there; the seconds of processor time that it took lie beside it, without those of what is
    needed first.
    """
    if (where / "model.safetensors").exists():
        return
    need()
    started, part = time.process_time(), where.with_name(f"{where.name}.part")
    train().save_pretrained(part)
    (part / SECONDS).write_text(json.dumps(round(time.process_time() - started, 1)) + "\n")
    part.rename(where)  # a run that is stopped leaves nothing half written


class Family:
    """
    The models of one seed in a folder; what is not there is trained, once.

    Args:
        folder (`Path`): Where the seeds' folders are.
        seed (`int`): Of the world, the initial weights and the order of the texts.
        effort (`Effort`): How long to train; kept with the models, and another one is refused.
    """

    def __init__(self, folder: Path, seed: int, effort: Effort) -> None:
        self.folder, self.seed, self.effort = folder / f"seed-{seed}", seed, effort
        self.world = ReplicationWorld.make(1000 + seed, people=effort.people, seen=effort.people // 2)
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp, wanted = self.folder / "effort.json", json.dumps(vars(effort))
        if stamp.exists() and stamp.read_text() != wanted:
            raise SystemExit(
                f"{self.folder} was trained with {stamp.read_text()}, expected {wanted}: give another --work folder."
            )
        stamp.write_text(wanted)
        self._loaded: dict[tuple[str, str], Any] = {}

    def prepare(self) -> None:
        """Make the tokenizer, once, before jobs ask for it side by side."""
        if not (self.folder / "tokenizer").exists():
            make_tokenizer(self.world, self.seed).save_pretrained(self.folder / "tokenizer")

    @property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder / "tokenizer")

    def model(self, size: str, stage: str) -> Any:
        """`stage` is `"base"` or a behaviour."""
        key = (size, stage)
        if key not in self._loaded:
            where = self.folder / f"{size}-{stage}"
            trained(where, lambda: self._train(size, stage), lambda: stage == "base" or self.model(size, "base"))
            self._loaded[key] = AutoModelForCausalLM.from_pretrained(where).eval()
        return self._loaded[key]

    def _train(self, size: str, stage: str) -> Any:
        label = f"seed {self.seed}, {size} {stage}"
        if stage == "base":
            set_seed(100 * self.seed + list(SIZES).index(size))
            model = make_model(self.tokenizer, **SIZES[size])
            return pretrain(
                model, self.world, self.tokenizer, self.effort.pretraining_steps, _PEAKS[size], self.seed + 10, label
            )
        model = AutoModelForCausalLM.from_pretrained(self.folder / f"{size}-base")
        shown = self.world.behaviour(stage, random.Random(self.seed + 20))
        replayed = self.world.biographies(random.Random(self.seed + 21))
        peak, steps = _TUNING_PEAK * _PEAKS[size], self.effort.tuning_steps
        return finetune(model, self.world, self.tokenizer, steps, peak, self.seed + 20, label, shown, replayed)

    def train(self, size: str) -> None:
        """A size and both of its behaviours, if they are not there yet."""
        for stage in ("base", *BEHAVIOURS):
            self.model(size, stage)
