"""Members that are PEFT adapters: what may be given, what is meant by it, and the views that run it. PEFT is imported when one is given."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...files.trust import ADAPTER, read_json
from ...recipe.combination import BASE, REFERENCE
from .stack import stacked_model
from .views import adapter_modules, flags_kept, view_of, with_adapter, without_adapters

# Methods that put modules around layers of the model and leave the layers as they are.
_METHODS = ("LORA", "IA3", "LOHA", "LOKR", "OFT", "VERA")
# Settings of LoRA that an adapter of a combination cannot have.
_REFUSED = {
    "alora_invocation_tokens": "is switched on by tokens in the prompt (activated LoRA), which a step does not see",
    "arrow_config": "routes among other adapters",
    "layer_replication": "copies layers of the model under it",
    "megatron_config": "has another library's layers built",
}
# Initialisations that take something out of the weights under the adapter.
_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Adapted:
    """Which model a member is, with which adapter on: its name, the folder to load it from, or `None` for the model itself."""

    trunk: PreTrainedModel
    adapter: str | Path | None


@dataclass
class Resolved:
    """The members as models that run, those among them that may run as one batch, and what each was read as."""

    models: dict[str, PreTrainedModel]
    stacks: list[tuple[tuple[str, ...], PreTrainedModel]]
    adapted: dict[str, Adapted]


def is_peft(model: Any) -> bool:
    """Whether this is a `PeftModel`, rather than a model of transformers with or without adapters in it."""
    return hasattr(model, "peft_config") and not isinstance(model, PreTrainedModel)


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
    if not any(_is_folder(model) or isinstance(model, Adapted) or hasattr(model, "peft_config") for model in given.values()):
        return Resolved(dict(given), [], {})
    _check_peft()
    members = _read(given)
    trunks = {id(member.trunk): member.trunk for member in members.values() if member.adapter is not None}
    if REFERENCE in wanted and REFERENCE not in members and len(trunks) == 1:
        members[REFERENCE] = Adapted(next(iter(trunks.values())), None)
    views: dict[tuple[int, Any], Any] = {}
    models: dict[str, PreTrainedModel] = {}
    for name, member in members.items():
        key = (id(member.trunk), member.adapter)
        if key not in views:
            views[key] = _view(name, member)
        models[name] = views[key]
    stacks = [stack for trunk in trunks.values() if (stack := _stack(trunk, members, models)) is not None]
    return Resolved(models, stacks, members)


def _read(given: Mapping[str, Any]) -> dict[str, Adapted]:
    """What was meant by each member."""
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
            members[name] = Adapted(model.trunk, checked_folder(name, model.adapter))
        elif _is_folder(model):
            members[name] = Adapted(_trunk_for(name, given), checked_folder(name, model))
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
    for adapter in active:
        _check_config(name, adapter, model.peft_config[adapter])
    return Adapted(model, next(iter(active), None))


def _adapter_of(name: str, model: Any) -> str:
    names = list(model.peft_config)
    chosen = name if name in names else names[0] if len(names) == 1 else None
    if chosen is None:
        raise ValueError(
            f"The model of the member {name!r} has the adapters {names}: which? Call the tuned members as the adapters are, "
            f"`tuned={{{names[0]!r}: model, ...}}`, or give a `PeftModel` with one."
        )
    _check_config(name, chosen, model.peft_config[chosen])
    return chosen


def _trunk_for(name: str, given: Mapping[str, Any]) -> Any:
    """What a folder's adapter is put on: the reference, or the base if there is none."""
    trunk = given.get(REFERENCE, given.get(BASE)) if name != REFERENCE else given.get(BASE)
    if trunk is None or _is_folder(trunk):
        raise ValueError(
            f"The member {name!r} is the folder of an adapter, but there is no model to put it on. Give the model it was trained on "
            "as `reference`, or load it with `PeftModel.from_pretrained`."
        )
    return trunk.get_base_model() if is_peft(trunk) else trunk


def _view(name: str, member: Adapted) -> PreTrainedModel:
    trunk = member.trunk
    if not isinstance(trunk, PreTrainedModel):
        return trunk  # no model of transformers: refused with the other members
    if any(getattr(layer, "merged", False) for _, layer in adapter_modules(trunk)):
        raise ValueError(
            f"An adapter is merged into the weights of the model of the member {name!r}. Undo that: `unmerge_adapter()`."
        )
    if isinstance(member.adapter, str):
        return with_adapter(trunk, member.adapter)
    if isinstance(member.adapter, Path):
        return _load(name, _plain(name, trunk), member.adapter)
    return _plain(name, trunk)


def _plain(name: str, trunk: Any) -> PreTrainedModel:
    """The model under the adapters: the object itself if it has none in it."""
    if not hasattr(trunk, "peft_config"):
        return trunk
    for adapter, config in trunk.peft_config.items():
        if why := _changes_weights(config):
            raise ValueError(
                f"The member {name!r} is to be the model under the adapter {adapter!r}, which {why}: without the adapter it is not what "
                "it was before. Give a `reference` of its own."
            )
    return without_adapters(trunk)


def _load(name: str, trunk: PreTrainedModel, folder: Path) -> PreTrainedModel:
    from peft import PeftModel

    view = view_of(trunk)
    with flags_kept(trunk):
        try:
            loaded = PeftModel.from_pretrained(view, str(folder), adapter_name=name)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"The adapter of the member {name!r} in {str(folder)!r} does not fit the model {type(trunk).__name__} that it is put "
                f"on ({trunk.config.name_or_path or 'made from a configuration'}): {error}"
            ) from error
    return loaded.get_base_model()


def own_weights(name: str, member: Adapted) -> PreTrainedModel:
    """
    The model under a member's adapter, to be saved with it.

    Raises:
        `ValueError`: If its weights are not those that the adapter was trained on, so that the two could not be put together again.
    """
    return _plain(name, member.trunk)


def _stack(
    trunk: PreTrainedModel, members: Mapping[str, Adapted], models: Mapping[str, PreTrainedModel]
) -> tuple[tuple[str, ...], PreTrainedModel] | None:
    views = {name: models[name] for name, member in members.items() if member.trunk is trunk}
    distinct = {name: view for name, view in views.items() if next(n for n in views if views[n] is view) == name}
    if len(distinct) < 2:
        return None
    model = stacked_model(without_adapters(trunk) if hasattr(trunk, "peft_config") else trunk, distinct)
    return None if model is None else (tuple(distinct), model)


# What is refused ------------------------------------------------------------------------------------------------------


def _check_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("A member is an adapter, which needs PEFT: `pip install 'hf-eft[peft]'`.") from error


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


def _check_config(name: str, adapter: str, config: Any) -> None:
    method = str(getattr(config.peft_type, "value", config.peft_type))
    if method not in _METHODS:
        raise ValueError(
            f"The adapter {adapter!r} of the member {name!r} is of the method {method}; adapters of {', '.join(_METHODS)} can be "
            "members. Give a model with the adapter merged into a copy, if the method allows that."
        )
    for key, why in _REFUSED.items():
        if getattr(config, key, None):
            raise ValueError(f"The adapter {adapter!r} of the member {name!r} has `{key}`: it {why}, and is refused.")


def _changes_weights(config: Any) -> str | None:
    """Why the weights under an adapter are not those that it was trained on."""
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_WEIGHTS):
        return f"took a part of the weights out at its start (`init_lora_weights={start!r}`)"
    if getattr(config, "bias", "none") != "none":
        return f"trained the model's own biases (`bias={config.bias!r}`)"
    return None


def _is_folder(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike)) and (Path(model) / ADAPTER).is_file()


def checked_folder(name: str, given: Any) -> Path:
    """
    The folder of an adapter, if loading it takes neither code nor pickles, and writes into nothing but the adapter.

    Raises:
        `ValueError`: If it is none, naming the member; `ImportError`: If PEFT is not installed.
    """
    _check_peft()
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
    from safetensors import safe_open

    folder = Path(given)
    where = f"The adapter of the member {name!r} in {str(folder)!r}"
    if not (folder / ADAPTER).is_file():
        raise ValueError(f"{where} has no `{ADAPTER}`.")
    description = read_json(folder / ADAPTER)
    method = description.get("peft_type")
    if method not in _METHODS:
        raise ValueError(f"{where} is of the method {method!r}, expected one of {', '.join(_METHODS)}.")
    if unknown := description.keys() - PEFT_TYPE_TO_CONFIG_MAPPING[method].__dataclass_fields__.keys():
        raise ValueError(f"{where} has settings that this version of PEFT does not know: {', '.join(sorted(unknown))}.")
    if description.get("megatron_config"):  # looked at before PEFT reads the file
        raise ValueError(f"{where} has `megatron_config`: it {_REFUSED['megatron_config']}, and is refused.")
    config = PeftConfig.from_pretrained(str(folder))
    _check_config(name, folder.name, config)
    if why := _changes_weights(config):
        raise ValueError(
            f"{where} {why}, so that loading it would change your model. Convert it to a plain one "
            "(`save_pretrained(path_initial_model_for_weight_conversion=...)`), or load it into a model of its own."
        )
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{where} has no `adapter_model.safetensors`. Pickled weights are not read: save it anew with PEFT.")
    own = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type].split("_")[0] + "_"
    with safe_open(weights, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (no mapping)
            parts = key.split(".")
            ours = any(part.startswith(own) for part in parts) or set(parts) & {"token_adapter", *(_saved(config))}
            if not ours or set(parts) & {"base_layer", "original_module"}:
                raise ValueError(
                    f"{where} holds the model's own weights {key!r}, which would overwrite yours. Load it with `PeftModel` into a "
                    "model of its own."
                )
    return folder


def _saved(config: Any) -> list[str]:
    return list(getattr(config, "modules_to_save", None) or [])
