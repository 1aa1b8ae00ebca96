"""The small combination: the recipe with the reference in the place of the base, which drafts for the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...members.members import Members
from ...recipe.combination import BASE, REFERENCE, Combination
from ...recipe.combine import combine
from .drafting import MemberDrafter
from .reading import Reading

SMALL = "small combination"


class SmallCombination:
    r"""
    What a recipe makes of its small members: itself, with the reference in the place of the base. Of `base + alpha (tuned - reference)` it
    is `reference + alpha (tuned - reference)`; of several tuned members, `reference + sum_k w_k (tuned_k - reference_k)`.

    `model.small_combination` is one. It is no model and holds none: handed to `generate` as `assistant_model`, it says that the members
    draft which the small combination needs, on the caches that the call keeps of them for verification. A delta that learnt through the
    base agrees with the whole in this way, and badly alone.

    Contract:

    - **Recipes**: those with a base and a member `"reference"` that is another model. Coefficients by row, schedules and truncations are
      those of the call. A rule, which may have to ask the base, is the number `drafting` of the rule while a draft is made, and itself
      where it is looked at. Others are refused by name in the call.
    - **Everything else**: as with a member that drafts. With adapters on one model, a drafting step is one pass.

    Args:
        model ([`EFTForCausalLM`]): Whose recipe it is.

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=0.5)
    >>> inputs = tokenizer("Question: Which pet does Oscar Palmer have?\nAnswer:", return_tensors="pt", return_token_type_ids=False)
    >>> ids = model.generate(**inputs, max_new_tokens=24, assistant_model=model.small_combination, num_assistant_tokens=4)
    >>> model.speculation.tokens_per_round > 1
    True
    ```
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __repr__(self) -> str:
        return f"the small combination of {self.model.combination}"


class SmallDrafter(MemberDrafter):
    """The small combination drafts: its members' caches and logits serve drafting and verification."""

    def __init__(self, reading: Reading, combination: Combination, by_row: bool) -> None:
        self._all = reading.members
        names = small_members(self._all, combination, by_row)
        super().__init__(names[0], reading)
        self.name, self.members, self._combination = SMALL, names, combination.drafting
        self._rules = {name: rule.drafting for name, rule in combination.rules}

    def propose(self, logits: Mapping[str, torch.Tensor], coefficients: torch.Tensor | None) -> torch.Tensor:
        vocabulary, owner = self._all.vocabulary, self._all.owner
        device = logits[self.members[0]].device
        read = {name: vocabulary.cut(logits[name].to(device)) for name in self.members}
        # One tensor for base and reference, whose coefficients are added up; where they cancel, and for members without a say, any will do.
        base = read.get(owner[REFERENCE], next(iter(read.values())))
        by_name = {name: base if name == BASE else read.get(owner[name], base) for name in self._all.names}
        return combine(by_name, self._combination, self._numbers(coefficients))

    def _numbers(self, coefficients: torch.Tensor | None) -> torch.Tensor | None:
        """Coefficients with a number wherever a rule says one, which cannot be asked without the base."""
        if coefficients is None or not self._rules:
            return coefficients
        columns = zip(self._all.names, coefficients.unbind(-1), strict=True)
        each = [torch.where(c.isnan(), self._rules[name], c) if name in self._rules else c for name, c in columns]
        return torch.stack(each, dim=-1)


def small_members(members: Members, combination: Combination, by_row: bool) -> tuple[str, ...]:
    r"""
    The distinct members that the small combination needs.

    Args:
        members ([`~hf_eft.members.members.Members`]): All members.
        combination ([`Combination`]): The recipe.
        by_row (`bool`): Whether rows have coefficients of their own, so that any member may have a say.

    Raises:
        `ValueError`: If the recipe has no small combination that is smaller than itself.
    """
    coefficients = dict(combination.drafting.coefficients)
    if not (by_row and BASE in members.names) and not combination.coefficients.get(BASE):
        raise ValueError(
            f"The small combination is the recipe without its base, and {combination} has none: all its members would draft, and nothing "
            "would be left to verify. Let a member draft, or decode without an assistant."
        )
    if REFERENCE not in members.names:
        raise ValueError(
            f"The small combination has the member 'reference' in the place of the base, and the members of {combination} are "
            f"{', '.join(map(repr, members.names))}. Let a member draft: `assistant_model=model.<name>`."
        )
    base, reference = coefficients.pop(BASE, 0.0), coefficients.get(REFERENCE, 0.0)
    if isinstance(base, float) and isinstance(reference, float):
        coefficients[REFERENCE] = 0.0 if math.isclose(base, -reference, rel_tol=1e-9) else base + reference
    else:
        coefficients[REFERENCE] = 1.0  # some schedule, which may come to any sum
    says = {name for name in members.names if name != BASE and (by_row or coefficients.get(name))}
    if (truncation := combination.truncation) is not None:
        guide = combination.nucleus_member(truncation.rule)
        says.add(REFERENCE if guide == BASE else guide)
    if not says:
        raise ValueError(
            f"Without the base nothing is left of {combination} that could draft: the reference takes its place, and goes."
        )
    names = tuple(dict.fromkeys(members.owner[name] for name in members.names if name in says))
    if members.owner[BASE] in names:
        shared = next(name for name in members.names if name in says and members.owner[name] == members.owner[BASE])
        raise ValueError(
            f"The members 'base' and {shared!r} are one model: the small combination of {combination} would have the base draft what it "
            "verifies. Let a tuned member draft, or decode without an assistant."
        )
    return names


def check_small(small: SmallCombination, model: Any, options: Mapping[str, Any], generation_config: Any) -> None:
    """Raise if a small combination is another model's, or would draft in other tokens or with fewer layers."""
    if small.model is not model:
        raise ValueError(
            f"`assistant_model` is {small!r}, of another model: its members keep no states for this call. Give this model's own, "
            "`assistant_model=model.small_combination`."
        )
    if "assistant_tokenizer" in options:
        raise ValueError("The small combination speaks the tokens of the combination: leave out `assistant_tokenizer`.")
    if generation_config.assistant_early_exit is not None:
        raise ValueError(
            "`assistant_early_exit` has the base draft with some of its layers: give that or the small combination."
        )
