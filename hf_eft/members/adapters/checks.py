"""Which adapters can be members: their methods, their settings, and what their files may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files.trust import ADAPTER, read_json

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


def check_peft() -> None:
    """Raise an `ImportError` if PEFT is not installed."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("A member is an adapter, which needs PEFT: `pip install 'hf-eft[peft]'`.") from error


def check_adapter(name: str, adapter: str | Path | None, model: Any) -> None:
    r"""
    Raise a `ValueError` if an adapter is not what runs as a member.

    Args:
        name (`str`): The member.
        adapter (`str` or `Path`, *optional*): Its name in the model, or its folder.
        model (`PeftModel` or `PreTrainedModel`): What was given, with an adapter of that name.
    """
    if isinstance(adapter, Path):
        checked_folder(name, adapter)
    elif adapter is not None:
        _check_config(name, adapter, model.peft_config[adapter])


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


def changes_weights(config: Any) -> str | None:
    """Why the weights under an adapter are not those that it was trained on."""
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_WEIGHTS):
        return f"took a part of the weights out at its start (`init_lora_weights={start!r}`)"
    if getattr(config, "bias", "none") != "none":
        return f"trained the model's own biases (`bias={config.bias!r}`)"
    return None


def checked_folder(name: str, given: Any) -> Path:
    """
    The folder of an adapter, if loading it takes neither code nor pickles, and writes into nothing but the adapter.

    Raises:
        `ValueError`: If it is none, naming the member; `ImportError`: If PEFT is not installed.
    """
    check_peft()
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
    from safetensors import SafetensorError, safe_open

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
    try:
        config = PeftConfig.from_pretrained(str(folder))
        saved = _saved(config)
    except Exception as error:  # each method checks its own settings, and raises what it likes
        raise ValueError(f"{where} has settings that PEFT does not read: {error}") from error
    _check_config(name, folder.name, config)
    if why := changes_weights(config):
        raise ValueError(
            f"{where} {why}, so that loading it would change your model. Convert it to a plain one "
            "(`save_pretrained(path_initial_model_for_weight_conversion=...)`), or load it into a model of its own."
        )
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{where} has no `adapter_model.safetensors`. Pickled weights are not read: save it anew with PEFT.")
    own = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type].split("_")[0] + "_"
    try:
        with safe_open(weights, framework="pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{where} has weights that cannot be read: {error}") from error
    for key in keys:
        parts = key.split(".")
        ours = any(part.startswith(own) for part in parts) or set(parts) & {"token_adapter", *saved}
        if not ours or set(parts) & {"base_layer", "original_module"}:
            raise ValueError(
                f"{where} holds the model's own weights {key!r}, which would overwrite yours. Load it with `PeftModel` into a "
                "model of its own."
            )
    return folder


def _saved(config: Any) -> list[str]:
    return list(getattr(config, "modules_to_save", None) or [])
