"""What is meant by each member that is given: a model, a `PeftModel`, the folder of an adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...files.trust import ADAPTER
from ...recipe.combination import BASE, REFERENCE
from .views import Adapted, adapter_modules


def is_peft(model: Any) -> bool:
    """Whether this is a `PeftModel`, rather than a model of transformers with or without adapters in it."""
    return hasattr(model, "peft_config") and not isinstance(model, PreTrainedModel)


def is_folder(model: Any) -> bool:
    """Whether this is the folder of an adapter."""
    return isinstance(model, (str, os.PathLike)) and (Path(model) / ADAPTER).is_file()


def read_given(given: Mapping[str, Any]) -> dict[str, Adapted]:
    """What was meant by each member. Whether its adapter can be one is not looked at here."""
    for name, model in given.items():
        if is_peft(model) and not hasattr(model, "get_base_model"):
            raise ValueError(
                f"The member {name!r} is a {type(model).__name__}, whose adapters are of several methods. Give a `PeftModel`."
            )
    _check_one_owner(given)
    under = {id(model.get_base_model()) for model in given.values() if is_peft(model)}
    members = {}
    for name, model in given.items():
        if isinstance(model, Adapted):
            members[name] = model
        elif is_folder(model):
            members[name] = Adapted(_trunk_for(name, given), Path(model))
        elif is_peft(model):
            members[name] = Adapted(model.get_base_model(), _adapter_of(name, model))
        elif id(model) in under:
            members[name] = Adapted(model, None)  # PEFT put its layers into this very object: without them is meant
        elif hasattr(model, "peft_config"):
            members[name] = _loaded_into(name, model, given)
        else:
            members[name] = Adapted(model, None)
    return members


def _loaded_into(name: str, model: Any, given: Mapping[str, Any]) -> Adapted:
    """A model of transformers into which an adapter was loaded (`load_adapter`)."""
    twice = sum(other is model for other in given.values()) > 1
    if twice and name in (BASE, REFERENCE):
        return Adapted(model, None)
    active = {adapter for _, layer in adapter_modules(model) if not layer.disable_adapters for adapter in layer.active_adapters}
    if len(active) > 1:
        raise ValueError(
            f"In the model of the member {name!r}, the adapters {sorted(active)} are on together. Leave one on: "
            "`from peft.functional import set_adapter; set_adapter(model, ...)`."
        )
    return Adapted(model, next(iter(active), None))


def _adapter_of(name: str, model: Any) -> str:
    names = list(model.peft_config)
    chosen = name if name in names else names[0] if len(names) == 1 else None
    if chosen is None:
        raise ValueError(
            f"The model of the member {name!r} has the adapters {names}: which? Call the tuned members as the adapters are, "
            f"`tuned={{{names[0]!r}: model, ...}}`, or give a `PeftModel` with one."
        )
    return chosen


def _trunk_for(name: str, given: Mapping[str, Any]) -> Any:
    """What a folder's adapter is put on: the reference, or the base if there is none."""
    trunk = given.get(REFERENCE, given.get(BASE)) if name != REFERENCE else given.get(BASE)
    if trunk is None or is_folder(trunk):
        raise ValueError(
            f"The member {name!r} is the folder of an adapter, but there is no model to put it on. Give the model it was trained on "
            "as `reference`, or load it with `PeftModel.from_pretrained`."
        )
    return trunk.get_base_model() if is_peft(trunk) else trunk


def _check_one_owner(given: Mapping[str, Any]) -> None:
    """Two `PeftModel`s over one model write into the same layers: what the first loaded, the second replaced."""
    owners: dict[tuple[int, str], Any] = {}
    for name, model in given.items():
        for adapter in model.peft_config if is_peft(model) else ():
            if owners.setdefault((id(model.get_base_model()), adapter), model) is not model:
                raise ValueError(
                    f"The member {name!r} is one of two `PeftModel`s over one model with an adapter {adapter!r}: the second replaced "
                    "the first. Load both into one: `model.load_adapter(..., adapter_name=...)`."
                )
