"""The line from helpful to harmless, with constants and with rules: whether it is above the chord between its ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asking import Group, packed
from benches import Seed
from rows import Row
from settings import Setting, through

from hf_eft import Combination, Divergence, EFTForCausalLM, KLConstrained

LAMBDAS = (0.0, 0.25, 0.375, 0.5, 0.75, 1.0)
METRICS = ("helpfulness", "harmlessness", "overrefusal", "factuality")


def constants(weight: float, unit: float) -> dict[str, Any]:
    """`λ helpful + (1 - λ) harmless`, as the paper steers."""
    return {
        "helpful": unit * weight,
        "harmless": unit * (1 - weight),
        "reference": -unit * weight,
        "other": -unit * (1 - weight),
    }


def constrained(weight: float, unit: float) -> dict[str, Any]:
    """The same, each weight times the strength that keeps its delta as near to the base as it is to the reference."""
    found: dict[str, Any] = {}
    for name, reference, share in (("helpful", "reference", weight), ("harmless", "other", 1 - weight)):
        rule = KLConstrained(unit**2, most=2 * unit, tuned=name, reference=reference)
        found |= {name: share * rule, reference: -share * rule} if share else {name: 0.0, reference: 0.0}
    return found


def by_conflict(weight: float, unit: float) -> dict[str, Any]:
    """All of helpful, and of the way from there to harmless more where the two differ more, up to twice `1 - λ` of it."""
    step = 2 * unit * (1 - weight) * Divergence("helpful", "harmless")
    return {"helpful": unit - step, "harmless": step, "reference": -unit}


def recipe(way: str, weight: float, unit: float = 0.5) -> Combination:
    """`base` and the deltas, at a λ."""
    return Combination({"base": 1.0, **WAYS[way](weight, unit)})


WAYS = {"constants": constants, "by conflict": by_conflict, "KL-constrained": constrained}
DELTAS = {"ordinary": None, "through large at 0.5": 0.5}


@dataclass(frozen=True)
class Frontier:
    """One kind of deltas, steered in one way, small on large."""

    delta: str
    way: str

    @property
    def name(self) -> str:
        return f"{self.delta}, {self.way}"

    def measure(self, seed: Seed, _: Mapping[str, Any]) -> dict[str, Any]:
        """Every λ on the test people."""
        alpha = DELTAS[self.delta]
        rows = {
            behaviour: Row("", Setting("", behaviour=behaviour) if alpha is None else through(alpha, behaviour=behaviour), "")
            for behaviour in ("helpful", "harmless")
        }  # fmt: skip
        models = seed.models(rows["helpful"])
        tuned = {"helpful": models["tuned"], "harmless": seed.models(rows["harmless"])["tuned"], "other": models["reference"]}
        # Ordinary deltas at the strength that keeps their facts (docs/replication.md), the others at that of training.
        recipes = {f"{w:g}": recipe(self.way, w) for w in LAMBDAS}
        model = EFTForCausalLM.from_models(
            models["base"], tuned=tuned, reference=models["reference"], combination=recipes["0.5"]
        )
        group: Group = seed.asked(rows["harmless"], "test")
        line = {weight: packed(group.judged(model, recipe)) for weight, recipe in recipes.items()}
        return {"delta": self.delta, "way": self.way, "seed": seed.seed, "line": line}


FRONTIERS = tuple(Frontier(delta, way) for way in WAYS for delta in DELTAS)
