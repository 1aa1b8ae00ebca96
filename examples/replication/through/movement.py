"""
How far learning moves a model from its reference, and whether along a straight line.

A delta that begins at zero and is scaled by a strength learns in one of two ways (Chizat, Oyallon, Bach, "On lazy training in
differentiable programming", NeurIPS 2019): with a large scale by re-weighting the features that are there, the model nearly linear in the
change of its weights; with a small one it has to move far, and forms features. What is measured tells which.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from by_token import KINDS, answers
from learning import Bench
from settings import STAGES, Setting


@dataclass(frozen=True)
class Moved:
    """A setting whose learner is compared with its reference, and with the model halfway between them."""

    setting: Setting

    @property
    def name(self) -> str:
        return f"moved, {self.setting.name}"

    @torch.no_grad()
    def measure(self, bench: Bench) -> dict[str, Any]:
        """
        `weights` and `features` (the last hidden states before a farewell): the change, relative to the reference. `bent`: by how much the
        delta of the model halfway is not half of the delta, relative to that half; 0 for a model that is linear in its weights.
        """
        family, setting = bench.family, self.setting
        reference, learner = family.model(setting.size, "base"), bench.learner(setting)
        inputs, kinds, _ = answers(bench.worlds[setting.world], family.tokenizer, family.world.test[:20])
        at = kinds[:, 1:] == KINDS.index("farewell")

        def read(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
            outputs = model(**inputs, output_hidden_states=True)
            return outputs.hidden_states[-1][:, :-1][at], outputs.logits[:, :-1][at].log_softmax(
                -1
            )  # (farewells, hidden or vocab)

        halfway = copy.deepcopy(reference)
        before, after = dict(reference.named_parameters()), dict(learner.named_parameters())
        for name, weight in halfway.named_parameters():
            weight.copy_((before[name] + after[name]) / 2)
        (features, logs), (moved, tuned), (_, middle) = map(read, (reference, learner, halfway))
        half = (tuned - logs) / 2
        change = torch.cat([(after[name] - before[name]).flatten() for name in before])
        return {
            "name": self.name,
            "seed": family.seed,
            "weights": (change.norm() / torch.cat([weight.flatten() for weight in before.values()]).norm()).item(),
            "features": ((moved - features).norm(dim=-1) / features.norm(dim=-1)).mean().item(),
            "bent": ((middle - logs - half).norm(dim=-1) / half.norm(dim=-1)).mean().item(),
        }


MOVEMENT = tuple(
    Moved(setting)
    for stage in ("equal steps", "strengths", "four times the steps")
    for setting in STAGES[stage]
    if not setting.alone
)
