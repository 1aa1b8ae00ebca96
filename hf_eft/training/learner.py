"""The member that learns: where it comes from, which of its weights learn, and that nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..members.adapters.checks import check_peft
from ..members.adapters.given import is_folder, is_peft
from ..members.adapters.views import Adapted
from ..recipe.combination import TUNED, Combination


def new_learner(reference: Any, peft_config: Any) -> Any:
    """
    What begins as the reference: a copy of it, or an adapter on it.

    Raises:
        `ValueError`: If there is no reference, or it cannot be trained as that.
    """
    if reference is None:
        raise ValueError(
            "There is nothing to learn from: give the `reference` that the new member begins as, or a `tuned` member."
        )
    if not isinstance(reference, PreTrainedModel):
        raise ValueError(
            f"The `reference` must be a model of transformers for a new member to begin as it, got {type(reference).__name__}. Give the "
            "model itself, or the member that goes on learning as `tuned`."
        )
    if peft_config is not None:
        check_peft()
        from peft import get_peft_model

        if hasattr(reference, "peft_config"):
            raise ValueError(
                f"The `reference` has the adapters {list(reference.peft_config)} in it, beside which a new one cannot begin as the "
                "reference. Give the `PeftModel` as `tuned`, or a reference without adapters."
            )
        return get_peft_model(reference, peft_config)
    if getattr(reference, "is_quantized", False):
        raise ValueError(
            "The `reference` is quantised: a copy of it has no weights that learn. Give a `peft_config`, to learn an adapter on it, or a "
            "reference in bfloat16 or float32."
        )
    return copy.deepcopy(reference)


def loaded(tuned: Any, reference: Any) -> Any:
    """A tuned member as what can learn: the adapter of a folder on the reference."""
    if not is_folder(tuned):
        return tuned
    check_peft()
    from peft import PeftModel

    if not isinstance(reference, PreTrainedModel):
        raise ValueError(f"The adapter {str(tuned)!r} is learnt on the `reference`, got {type(reference).__name__} for it.")
    return PeftModel.from_pretrained(reference, str(tuned), is_trainable=True)


def name_of_learner(tuned: Any, combination: Combination, learns: str | None) -> str:
    """
    Which member learns.

    Raises:
        `ValueError`: If that is not said, or it has no say in the combination.
    """
    names = list(tuned) if isinstance(tuned, Mapping) else [TUNED]
    if learns is None and len(names) > 1:
        raise ValueError(f"Of the tuned members {names}, which one learns? Say so: `learns={names[0]!r}`.")
    name = names[0] if learns is None else learns
    if name not in names:
        raise ValueError(f"`learns` must name a tuned member, one of {names}, got {learns!r}.")
    if combination.scheduled:
        raise ValueError(
            f"The combination {combination} has a schedule, which counts the tokens that are generated; a text to learn from does not say "
            "where that began. Train with numbers, or give `coefficients` for each position."
        )
    if combination.phased:
        raise ValueError(
            f"The combination {combination} has phases, which a loss is not told. Train with numbers, and use what was learnt with "
            "phases; or give `coefficients` for each position."
        )
    if combination.rules:
        raise ValueError(
            f"The combination {combination} has a rule for {', '.join(map(repr, combination.ruled))}, and what it says of a token "
            "would change with what is learnt. Train with numbers, and use what was learnt with the rule."
        )
    if (cut := combination.truncation) is not None and cut.rule != "keep":
        raise ValueError(
            f"The truncation {cut.rule!r} gives tokens the probability 0, where a loss is infinite and has no gradient. Train without it, "
            "and use the learner with it; or take the rule 'keep'."
        )
    if combination.coefficient(name) == 0:
        raise ValueError(f"The member {name!r} learns nothing: its coefficient in the combination {combination} is 0.")
    return name


def freeze(frozen: Iterable[nn.Module], learner: Any, view: nn.Module, adapted: Adapted | None) -> None:
    r"""
    Leave gradients to the learner alone.

    Args:
        frozen (`Iterable[torch.nn.Module]`): Every other model.
        learner (`PreTrainedModel` or `PeftModel`): What learns.
        view (`torch.nn.Module`): The model that runs as the learner.
        adapted ([`Adapted`], *optional*): Which adapter it is.

    Raises:
        `ValueError`: If a weight that is to learn is that of another member as well.
    """
    learns = [parameter for parameter in view.parameters() if parameter.requires_grad]
    for model in (*frozen, view):
        model.requires_grad_(False)
    if adapted is not None and isinstance(adapted.adapter, str):
        from peft.functional import set_adapter

        set_adapter(adapted.trunk, adapted.adapter)
        if is_peft(learner):
            learner.set_adapter(adapted.adapter)
    else:
        for parameter in learns or [p for p in view.parameters() if p.is_floating_point()]:
            parameter.requires_grad_(True)
    taught = {id(parameter) for parameter in view.parameters() if parameter.requires_grad}
    if not taught:
        raise ValueError("The member that learns has no weights that can: give one in a floating dtype, or an adapter.")
    for model in frozen if adapted is None else ():  # adapters of one model are in all its views, off in those of others
        shared = next((name for name, parameter in model.named_parameters() if id(parameter) in taught), None)
        if shared is not None:
            raise ValueError(
                f"The weight {shared!r} is the learner's and that of a member that must stay as it is. Give the learner weights of its "
                "own: a copy, or an adapter."
            )
