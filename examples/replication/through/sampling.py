"""The strength of use chosen for answers that are sampled: a delta that is not sure enough is sharpened by a larger one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from learning import Bench
from measure import Asked, shares
from settings import STAGES, Setting

from hf_eft import Combination, EFTForCausalLM

TEMPERATURE = 1.0


@dataclass(frozen=True)
class Sampled:
    """A setting of the first world whose strength is chosen by what the validation people are told at `TEMPERATURE`."""

    setting: Setting

    @property
    def name(self) -> str:
        return f"sampled, {self.setting.name}"

    def measure(self, bench: Bench) -> dict[str, Any]:
        """Scores at `TEMPERATURE`: of every strength on the validation people, of the chosen one on the test people."""
        family, setting = bench.family, self.setting
        model = EFTForCausalLM.from_models(
            family.model(setting.use, "base"), tuned=bench.learner(setting), reference=family.model(setting.size, "base")
        )

        def scores(asked: Asked, strength: float) -> dict[str, float]:
            model.combination = Combination.emulate(alpha=strength)
            return shares(asked.judged(model, TEMPERATURE))

        validation, test = Asked(family, family.world.validation), Asked(family, family.world.test)
        tried = {strength: scores(validation, strength) for strength in setting.strengths}
        chosen = max(tried, key=lambda strength: tried[strength]["factuality"] + tried[strength]["helpfulness"])
        return {
            "name": self.name,
            "seed": family.seed,
            "chosen": chosen,
            "validation, temperature 1": {f"{strength:g}": found for strength, found in tried.items()},
            "test, temperature 1": scores(test, chosen),
        }


SAMPLING = tuple(
    Sampled(setting) for stage in ("equal steps", "four times the steps") for setting in STAGES[stage] if not setting.alone
)
