"""The models of a seed, of both kinds of worlds, and the people who are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asking import Group
from learning import Bench
from manners import OtherFactWorld
from rows import OTHER, Row
from second import SecondWorld
from sizes import Effort, Family
from sums import SumsFamily

from hf_eft import EFTForCausalLM


class Seed:
    """
    Everything of one seed; what has been trained is in the folder and is not trained again.

    Args:
        work (`Path`): The work folder.
        seed (`int`): The seed.
        effort (`Effort`): How long to train.
    """

    def __init__(self, work: Path, seed: int, effort: Effort) -> None:
        self.seed = seed
        family = Family(work / "families", seed, effort)
        worlds = {
            "first": family.world,
            "second": SecondWorld(**vars(family.world)),
            OTHER: OtherFactWorld(**vars(family.world)),
        }
        sums = SumsFamily(work / "sums" / "families", seed, effort)
        self._benches = {
            False: Bench(family, work / "learners" / f"seed-{seed}", worlds),
            True: Bench(sums, work / "sums" / "learners" / f"seed-{seed}", {"first": sums.world}),
        }

    def bench(self, row: Row) -> Bench:
        found = self._benches[row.sums]
        found.family.prepare()
        return found

    def models(self, row: Row) -> dict[str, Any]:
        """The three models of a row, by the member's name."""
        bench, setting = self.bench(row), row.setting
        return {
            "base": bench.family.model(setting.use, "base"),
            "tuned": bench.learner(setting),
            "reference": bench.family.model(setting.size, "base"),
        }

    def model(self, row: Row) -> EFTForCausalLM:
        members = self.models(row)
        return EFTForCausalLM.from_models(members.pop("base"), **members)

    def asked(self, row: Row, people: str) -> Group:
        """`people` is `"validation"` or `"test"`."""
        bench = self.bench(row)
        world = bench.worlds[row.setting.world]
        return Group(world, bench.family.tokenizer, getattr(world, people), self.seed, row.refuses)

    def train(self, row: Row) -> None:
        """Train what the row needs and is not there."""
        self.models(row)
