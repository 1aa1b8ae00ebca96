"""What to try where a combination loses to its tuned member."""

from __future__ import annotations

from ..recipe.combination import Combination
from ..recipe.phases import BASE, REFERENCE, TUNED
from ..recipe.rules.confidence import Entropy

# The rule that validation people chose on the replication, and of which the page of evaluation says how many losses it made none.
RULE = Entropy(most=1.0, base=TUNED, tuned=BASE)


def advice(combination: Combination) -> str | None:
    """
    What to measure next where the combination is worse than its tuned member: the rule that the replication recommends, on the up-scaling
    delta. `None` for recipes that it does not stand for: other members than base, tuned and reference, or what has a rule already.

    ```python
    >>> from hf_eft import Combination
    >>> from hf_eft.evaluation.advice import advice

    >>> print(advice(Combination.emulate(alpha=1.0))[:82])
    Measure it with a rule, too: --beta entropy:most=1,base=tuned,tuned=base, which is
    >>> advice(Combination.mix({"one": 0.5, "other": 0.5})) is None
    True

    ```
    """
    if set(combination.coefficients) != {BASE, TUNED, REFERENCE} or combination.rules:
        return None
    recipe = Combination.emulate(beta=RULE)
    return (
        f"Measure it with a rule, too: --beta entropy:most={RULE.most:g},base={TUNED},tuned={BASE}, which is {recipe} "
        "(docs/rules.md says what it was measured on)."
    )
