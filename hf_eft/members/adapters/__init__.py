"""Members that are PEFT adapters: what may be given, what is meant by it, and the views that run it. PEFT is imported when one is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ...recipe.combination import REFERENCE
from .checks import check_adapter, check_peft
from .given import is_folder, is_peft, read_given
from .stack import stack_of
from .views import Adapted, plain, view_for


@dataclass
class Resolved:
    """The members as models that run, those among them that may run as one batch, and what each was read as."""

    models: dict[str, PreTrainedModel]
    stacks: list[tuple[tuple[str, ...], PreTrainedModel]]
    adapted: dict[str, Adapted]


def by_adapter(tuned: Any) -> Any:
    """A `PeftModel` of several adapters is several tuned members, called as the adapters are."""
    if is_peft(tuned) and len(tuned.peft_config) > 1:
        return dict.fromkeys(tuned.peft_config, tuned)
    return tuned


def resolve(given: Mapping[str, Any], wanted: Collection[str]) -> Resolved:
    r"""
    Args:
        given (`Mapping[str, Any]`):
            By member, a model, a `PeftModel`, the folder of an adapter, or an [`Adapted`]: such a folder and the model to put it on.
        wanted (`Collection[str]`): The members that the recipe names. A reference that is missing is the model under the adapters.

    Raises:
        `ValueError`: If an adapter is not what runs as a member; `ImportError`: If PEFT is not installed.
    """
    if not any(is_folder(model) or isinstance(model, Adapted) or hasattr(model, "peft_config") for model in given.values()):
        return Resolved(dict(given), [], {})
    check_peft()
    members = read_given(given)
    for name, member in members.items():
        check_adapter(name, member.adapter, given[name])
    trunks = {id(member.trunk): member.trunk for member in members.values() if member.adapter is not None}
    if REFERENCE in wanted and REFERENCE not in members and len(trunks) == 1:
        members[REFERENCE] = Adapted(next(iter(trunks.values())), None)
    views: dict[tuple[int, Any], Any] = {}
    models: dict[str, PreTrainedModel] = {}
    for name, member in members.items():
        key = (id(member.trunk), member.adapter)
        if key not in views:
            views[key] = view_for(name, member)
        models[name] = views[key]
    stacks = [stack for trunk in trunks.values() if (stack := stack_of(trunk, members, models)) is not None]
    return Resolved(models, stacks, members)


def own_weights(name: str, member: Adapted) -> PreTrainedModel:
    """
    The model under a member's adapter, to be saved with it.

    Raises:
        `ValueError`: If its weights are not those that the adapter was trained on, so that the two could not be put together again.
    """
    return plain(name, member.trunk)
