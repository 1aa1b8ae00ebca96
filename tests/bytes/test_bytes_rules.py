"""Coefficients by rule of members over bytes: what a rule reads are the log-probs of bytes."""

from __future__ import annotations

import pytest
import ruling
from byte_members import EXACT, MODELS, PROMPTS, generated, members, written
from byte_oracle import Oracle, model

from hf_eft import Combination, EFTForCausalLM

STEPS = 5


@pytest.mark.parametrize("which", ["kl", "entropy", "gate"])
def test_rules_are_those_of_the_enumeration(which: str) -> None:
    rule, says = ruling.RULES[which]
    oracles = {name: Oracle(model(kind, seed), kind) for name, (kind, seed) in MODELS.items()}
    combined = EFTForCausalLM.from_models(**members(**EXACT), combination=Combination.emulate(alpha=rule))
    plain = generated(combined, max_new_tokens=STEPS)
    for text, row in zip(PROMPTS, plain, strict=True):
        expected, ended = text, False
        for _ in range(STEPS):
            p = {name: oracle.next(expected, b"ab") for name, oracle in oracles.items()}
            alpha = says({name: values.tolist() for name, values in p.items()})
            best = int((p["base"].log() + alpha * (p["tuned"].log() - p["reference"].log())).argmax())
            ended = ended or best == 2
            expected += b"" if ended else b"ab"[best : best + 1]
        assert written(row) == expected
    drafted = generated(combined, max_new_tokens=STEPS, assistant_model=combined.small_combination, num_assistant_tokens=3)
    assert drafted == plain
