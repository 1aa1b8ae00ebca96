"""What is compared: constants, truncations and rules, each with the few options that the validation people choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hf_eft import Combination, Confidence, Divergence, Entropy, KLConstrained, Truncation

Options = dict[str, Combination]

PLAIN = "α = 1"
CONSTANT = "constant α"
BOUNDS = (0.75, 0.5, 1.0)  # the first where there is time for one: this rule is the slowest


def hand_over(rule: Any) -> Combination:
    """`(1 - rule) base + rule tuned`: the tuned model alone where the rule says 1."""
    return Combination({"base": 1 - rule, "tuned": rule})


def candidates(unit: float, gates: Mapping[str, Any] | None = None, whole: bool = True) -> dict[str, Options]:
    """
    Families of recipes by name, each with its options by name.

    Args:
        unit (`float`): The strength of training: what α = 1 stands for of a delta that learnt through a base.
        gates (`Mapping[str, Gate]`, *optional*): Gates that were trained, by `"α"` and `"β"`.
        whole (`bool`, *optional*, defaults to `True`): Whether the slowest rules have all of their options.
    """

    bounds = BOUNDS if whole else BOUNDS[:1]

    def by_alpha(said: str, rule: Any) -> Options:
        return {f"α = {said}": Combination.emulate(alpha=unit * rule)}

    def by_beta(said: str, rule: Any) -> Options:
        """`tuned + rule (base - reference)`: the tuned model alone where the rule says 0."""
        return {f"β = {said}": Combination.emulate(beta=rule)}

    def each(make: Callable[..., Options], rules: Mapping[str, Any]) -> Options:
        return {name: recipe for said, rule in rules.items() for name, recipe in make(said, rule).items()}

    def truncated(rule: str, *masses: float) -> Options:
        return {f"{rule} {p:g}": Combination.emulate(alpha=unit, truncation=Truncation(rule, p)) for p in masses}

    found = {
        PLAIN: {PLAIN: Combination.emulate(alpha=unit)},
        CONSTANT: {f"α = {a:g}": Combination.emulate(alpha=unit * a) for a in (0.25, 0.5, 0.75, 1.0, 1.25)},
        "truncation keep": truncated("keep", 0.9, 0.95),
        "truncation drop": truncated("drop", 0.9),
        "truncation base": truncated("base", 0.9),
        "truncation plausible": truncated("plausible", 0.1),
        "KL-constrained α": {
            # The divergence grows with the square of the strength.
            f"α = kl({b:g})": Combination.emulate(alpha=KLConstrained(b * unit**2, most=2 * unit)) for b in bounds
        },
        "confidence α (bet)": each(
            by_alpha,
            {
                f"{least:g} to {most:g} by bet({m:g})": Confidence(m, most=most, least=least)
                for m in (-0.2, 0.0)
                for least, most in ((0.0, 1.0), (0.5, 1.0), (0.5, 1.5))
            },
        ),
        "entropy α": each(by_alpha, {f"entropy(to {most:g})": Entropy(most) for most in (0.5, 1.0, 1.5)}),
        "divergence α": each(
            by_alpha,
            {f"{a:g} + {most:g} js(tuned, reference)": a + most * Divergence("tuned", "reference")
             for a, most in ((0.0, 1.0), (0.25, 1.0), (0.5, 0.5))},
        ),
    }  # fmt: skip
    if unit == 1:
        found |= {
            "constant β": each(by_beta, {f"{b:g}": b for b in (0.25, 0.5, 0.75)}),
            "KL-constrained β": each(
                by_beta, {f"kl({b:g}, to 1)": KLConstrained(b, most=1.0, tuned="base", base="tuned") for b in bounds}
            ),
            "confidence β (bet)": each(by_beta, {f"1 - bet({m:g})": 1 - Confidence(m) for m in (-0.6, -0.4, -0.2, 0.0)}),
            "entropy β": each(
                by_beta, {f"entropy of tuned(to {most:g})": Entropy(most, base="tuned", tuned="base") for most in (1.0, 1.5)}
            ),
            "divergence β": each(
                by_beta, {f"{most:g} js(base, reference)": most * Divergence("base", "reference") for most in (0.5, 1.0, 1.5)}
            ),
            "hand over (bet)": {f"hand over, bet({m:g})": hand_over(Confidence(m)) for m in (-0.6, -0.4, -0.2, 0.0)},
            "hand over (threshold)": {f"hand over, unsure({t:g})": hand_over(Confidence(threshold=t)) for t in (0.5, 0.7, 0.9)},
        }
    for form, gate in (gates or {}).items():
        make = by_alpha if form == "α" else by_beta
        found[f"gate {form}"] = make("gate", gate)
    return found
