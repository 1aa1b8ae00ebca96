"""Compositions that nobody thought of, with a rule in the place of alpha: held against the stateless oracle and the rule's own formula."""

from __future__ import annotations

import zlib
from typing import Any

import composition_checks
import compositions
import oracle
import pytest
import ruling
import torch
from composition_cases import Case, code
from composition_oracle import Sheet

from hf_eft import Combination
from hf_eft.recipe import combine

RULES = ("kl", "entropy", "js", "gate")  # those that jump do so where both sides are equal but for rounding
# How much further off scores may be than with numbers: what members are off by moves what is said of them.
_BENT = 10


def rule_of(case: Case) -> str | None:
    """Which rule stands in the place of a case's alpha, where that is a number."""
    kind, alpha, *_ = case.recipe
    return (
        RULES[zlib.crc32(code(case).encode()) % len(RULES)]
        if kind == "alpha" and not isinstance(alpha, tuple) and alpha
        else None
    )


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Have cases hold a rule, in the package and in the oracle; which rules there were."""
    seen: set[str] = set()
    with_numbers, combined, bound = composition_checks.recipe_of, Sheet._combine, Sheet.bound

    def recipe_of(case: Case) -> Combination:
        made, which = with_numbers(case), rule_of(case)
        seen.update([which] if which else [])
        return made if which is None else Combination.emulate(alpha=ruling.RULES[which][0], truncation=made.truncation)

    def by_formula(sheet: Any, logits: dict[str, torch.Tensor], prompt: int, step: int) -> torch.Tensor:
        which = rule_of(sheet.case)
        if which is None or sheet.call.coefficients is not None:  # numbers of a row stand in for the rule
            return combined(sheet, logits, prompt, step)
        alpha = ruling.RULES[which][1]({name: values.double().softmax(-1).tolist() for name, values in logits.items()})
        total = oracle.combined(logits, {"base": 1.0, "tuned": alpha, "reference": -alpha}, sheet.truncation)
        return torch.nn.functional.pad(total, (0, sheet.width - sheet.size), value=-torch.inf)

    monkeypatch.setattr(composition_checks, "recipe_of", recipe_of)
    monkeypatch.setattr(Sheet, "_combine", by_formula)
    monkeypatch.setattr(
        Sheet, "bound", lambda sheet, steps=1: bound(sheet, steps) * (1 if rule_of(sheet.case) is None else _BENT)
    )
    return seen


def test_drawn_compositions_with_rules_are_what_the_oracle_says(held: set[str]) -> None:
    counts = compositions.run_block(102) + compositions.run_block(103)
    assert held == set(RULES) and counts["cases"] >= 40 and counts["refused"] <= 10


def test_a_rule_that_says_too_much_is_seen(held: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    by_rule = combine._by_rule
    monkeypatch.setattr(combine, "_by_rule", lambda *given: {name: 1.2 * said for name, said in by_rule(*given).items()})
    with pytest.raises(compositions.Failed):
        compositions.run_block(102)
