"""Steering between two deltas, learnt ordinarily or through the large base: the frontier of the form against what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from learning import Bench
from measure import LAMBDAS, Asked
from settings import Setting, through

from hf_eft import Combination, EFTForCausalLM


@dataclass(frozen=True)
class Steered:
    """Two settings of one kind, `helpful` and `harmless`, and the strength at which they are used together."""

    name: str
    settings: dict[str, Setting]
    strength: float

    def measure(self, bench: Bench) -> dict[str, Any]:
        """`strength (λ helpful + (1 - λ) harmless)` for each λ on the test people."""
        family = bench.family
        model = EFTForCausalLM.from_models(
            family.model("large", "base"),
            tuned={behaviour: bench.learner(setting) for behaviour, setting in self.settings.items()},
            reference=family.model("small", "base"),
            combination=Combination.steer({"helpful": 0.5, "harmless": 0.5}),
        )
        asked, line = Asked(family, family.world.test), {}
        for weight in LAMBDAS:
            weights = {"helpful": self.strength * weight, "harmless": self.strength * (1 - weight)}
            model.combination = Combination.steer(weights)
            line[f"{weight:g}"] = asked.scores(model)
        return {"name": self.name, "seed": family.seed, "line": line, "strength": self.strength}


# Ordinary deltas at the strength that keeps their facts (docs/replication.md), the others at that of training.
STEERING = (
    Steered(
        "steering, ordinary",
        {b: Setting("ordinary" if b == "helpful" else "ordinary, harmless", behaviour=b) for b in ("helpful", "harmless")},
        0.5,
    ),
    Steered("steering, through large", {b: through(0.5, behaviour=b) for b in ("helpful", "harmless")}, 0.5),
)
