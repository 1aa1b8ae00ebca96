"""A recipe from what a user says: a strength, an amplification or weights, whatever members there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .coefficients import Coefficient, Weight, mapped, total
from .combination import BASE, REFERENCE, Combination
from .phases import Phase
from .truncation import Truncation


def recipe(
    names: Sequence[str],
    alpha: Coefficient | None = None,
    beta: Coefficient | None = None,
    weights: Mapping[str, Weight] | None = None,
    truncation: Truncation | None = None,
    phases: Sequence[Phase] = (),
) -> Combination:
    r"""
    The recipe of the members `names` with one of `alpha`, `beta` and `weights`.

    Args:
        names (`Sequence[str]`): The members that there are.
        alpha (`float`, *optional*): Strength of the behaviour delta; 1 if nothing else is given.
        beta (`float`, *optional*): Amplification of the up-scaling delta.
        weights (`Mapping[str, float]`, *optional*):
            The weight of each tuned member, 0 for one that is not named: of its delta where there is a base and a reference (EFT
            paper, section 3.3); against the reference where there is no base (DeRa); of itself where there is neither (MOD).
        truncation ([`Truncation`], *optional*): Which tokens may be re-weighted.
        phases (`Sequence[Phase]`, *optional*): The phases of a text. The numbers above may differ by phase: `{"think": 1, "answer": 0}`.

    Returns:
        [`Combination`]

    Raises:
        `ValueError`: If two of them are given, weights are missing or name no tuned member.

    Example:

    ```python
    >>> from hf_eft.recipe.shorthands import recipe

    >>> print(recipe(["base", "helpful", "brief", "reference"], weights={"helpful": 0.7}))
    base + 0.7 helpful - 0.7 reference
    ```
    """
    given = [name for name, value in (("alpha", alpha), ("beta", beta), ("weights", weights)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"Give one of alpha, beta and weights, not both {' and '.join(given)}.")
    tuned = [name for name in names if name not in (BASE, REFERENCE)]
    if not weights:
        if len(tuned) > 1:
            raise ValueError(f"With the tuned members {', '.join(tuned)}, say how they are weighted.")
        chosen = Combination.emulate(alpha, beta, truncation, phases)
        chosen.check_names(tuple(names))
        return chosen
    if unknown := sorted(set(weights) - set(tuned)):
        raise ValueError(
            f"There are no tuned members {', '.join(map(repr, unknown))} to weight, but {', '.join(map(repr, tuned))}."
        )
    whole = {name: weights.get(name, 0.0) for name in tuned}
    if BASE in names and REFERENCE in names:
        return Combination.steer(whole, truncation, phases=phases)
    if REFERENCE in names:
        rest = mapped(total(list(whole.values())), lambda value: 1.0 - value)
        return Combination({**whole, REFERENCE: rest}, truncation, phases)
    return Combination(whole, truncation, phases)
