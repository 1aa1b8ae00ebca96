"""What a loading call is asked for: what every member is told, how the Hub is asked, what says nothing here, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
# What every member's loading call is told, unless `member_kwargs` says otherwise.
OF_A_MEMBER = (
    "dtype device_map max_memory offload_folder offload_buffers quantization_config attn_implementation experts_implementation "
    "use_safetensors weights_only disable_mmap use_kernels kernel_config allow_all_kernels fusion_config key_mapping tqdm_class".split()
)
# What only one member can be told.
_OF_ONE_MEMBER = ("variant", "generation_config")
# What transformers tells itself on the way from an Auto class or a pipeline, and what it takes and no longer reads.
IGNORED = (
    "_from_auto _from_pipeline _commit_hash mirror _fast_init low_cpu_mem_usage from_tf from_flax offload_state_dict".split()
)
_SPLIT = "a member lies on one device, or on several by its `device_map`"
# By name: why it is refused. Their values of no effect are taken.
REFUSED = {
    "state_dict": "the members' weights are read from the folder",
    "ignore_mismatched_sizes": "weights that do not fit would be random",
    "variant": "a combination has one set of weights; a member loaded by name is given its own with `member_kwargs`",
    "gguf_file": "members are read from safetensors",
    "adapter_name": "adapters are members, under the names that they have",
    "adapter_kwargs": "adapters are members, read from the folder",
    "code_revision": "a member's code is read at the commit of its repository",
    "distributed_config": _SPLIT,
    "device_mesh": _SPLIT,
    "tp_plan": _SPLIT,
    "tp_size": _SPLIT,
}
_OF_NO_EFFECT: tuple[Any, ...] = (None, False, {})
# What an Auto class writes into `adapter_kwargs` on its way.
_OF_AN_AUTO_CLASS = {"token", "revision"}


def check_refused(options: Mapping[str, Any], whose: str = "") -> None:
    """Raise a `ValueError` for an option of transformers that a combination, or a member of it, cannot heed."""
    for key, reason in REFUSED.items():
        value = options.get(key)
        if key == "adapter_kwargs" and value is not None:
            value = {name: given for name, given in value.items() if name not in _OF_AN_AUTO_CLASS}
        if any(value is nothing or value == nothing for nothing in _OF_NO_EFFECT):
            continue
        if key != "adapter_name" or value != "default":
            raise ValueError(f"`{key}` cannot be given{whose}, got {value!r:.80}: {reason}.")


def take(options: dict[str, Any]) -> dict[str, Any]:
    r"""
    Take what every member is told out of the options of a loading call.

    Args:
        options (`dict[str, Any]`):
            What the call was given. What is read here is taken out; what says nothing as well. What is left are attributes of the
            configuration, or unknown.

    Returns:
        `dict[str, Any]`: For each member.

    Raises:
        `ValueError`: For an option of transformers that cannot be heeded.
    """
    check_refused(options)
    for key in (*IGNORED, *REFUSED):
        options.pop(key, None)
    named = {key: options.pop(key) for key in ("torch_dtype", *OF_A_MEMBER) if key in options}
    return with_dtype({key: value for key, value in named.items() if value is not None})


def with_dtype(told: Mapping[str, Any], whose: str = "") -> dict[str, Any]:
    """
    The same with `torch_dtype` under its present name; `dtype` wins where both are given, as in transformers.

    Raises:
        `ValueError`: For dtypes by part: transformers gives all parts of a model the same.
    """
    told = dict(told)
    older = told.pop("torch_dtype", None)
    if told.get("dtype") is None and older is not None:
        told["dtype"] = older
    if isinstance(told.get("dtype"), Mapping):
        raise ValueError(
            f"`dtype` must be one dtype{whose}, got {told['dtype']!r}. For a member's own, give "
            "`member_kwargs={'tuned': {'dtype': ...}}`."
        )
    return told


def for_each(
    names: Mapping[str, str], common: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    r"""
    What each member's loading call is told.

    Args:
        names (`Mapping[str, str]`): The members, and each one's part of the configuration (`text_config`, ...).
        common (`Mapping[str, Any]`): What all are told. Implementations may be given by part, devices by modules of the combination.
        own (`Mapping[str, Mapping[str, Any]]`): What some are told instead.

    Raises:
        `ValueError`: For members that there are not, and for what cannot be heeded; `TypeError`: For what no loading call takes. Both name
            the member.
    """
    if unknown := set(own) - set(names):
        raise ValueError(f"`member_kwargs` has arguments for {sorted(unknown)}, but those that are loaded are {list(names)}.")
    return {
        name: {"dtype": "auto", **_part_of(common, name, key, list(names)), **_own(name, own.get(name, {}))}
        for name, key in names.items()
    }


def _own(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    whose = f" for the member {name!r}"
    check_refused({key: value for key, value in given.items() if key not in _OF_ONE_MEMBER}, whose)
    known = {"torch_dtype", *OF_A_MEMBER, *_OF_ONE_MEMBER}
    if unknown := sorted(set(given) - known - set(IGNORED) - set(REFUSED)):
        raise TypeError(f"`member_kwargs` has arguments{whose} that no member takes: {', '.join(map(repr, unknown))}.")
    return with_dtype({key: value for key, value in given.items() if key in known}, whose)


def _part_of(common: Mapping[str, Any], name: str, key: str, names: list[str]) -> dict[str, Any]:
    """What all are told, as far as it is about this member."""
    part = dict(common)
    for option in ("attn_implementation", "experts_implementation"):
        if isinstance(
            part.get(option), Mapping
        ):  # by part of the configuration; "" is the combination itself, which has no layers
            part[option] = part[option].get(key)
    devices = part.get("device_map")
    if isinstance(devices, Mapping) and any(module.split(".")[0] in names for module in devices):
        mine = {
            module.removeprefix(name).removeprefix("."): device for module, device in devices.items() if _within(module, name)
        }
        if not mine and "" not in devices:
            raise ValueError(f"`device_map` has no device for the member {name!r}, got {dict(devices)!r:.200}.")
        part["device_map"] = mine or {"": devices[""]}
    return {option: value for option, value in part.items() if value is not None}


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")
