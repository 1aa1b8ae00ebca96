"""One member's model from its place: safetensors only, no code that was not asked for, no weight made up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from ..members.auto import auto_class
from ..members.quantised import QUANTISE_WHILE_LOADING, check_kept, is_wrapped, method_of


def announced(places: Mapping[str, str], progress: Callable[[str], None] | None) -> Iterator[str]:
    """The members one by one, each named before it is loaded: to `progress`, or else on a bar."""
    bar = logging.tqdm(places, desc="Loading members", disable=progress is not None)
    for name in bar:
        bar.set_description(f"Loading the {name} model")
        if progress is not None:
            progress(f"Loading the {name} model: {places[name]}")
        yield name


def load_tokenizer(name: str, place: str | Path, trust_remote_code: bool = False, **options: Any) -> Any:
    """A member's tokenizer; a `ValueError` that names the member if it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # what is in a file decides what is raised, and by which library
        raise ValueError(f"The tokenizer of the member {name!r} cannot be loaded from {str(place)!r}: {error}") from error


def check_size(name: str, folder: Path, config: PreTrainedConfig) -> None:
    """
    Raise a `ValueError` if a member's weights cannot be those that its configuration describes: what is missing would be made up, in
    memory, before anybody could say so.
    """
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    quantised = getattr(config, "quantization_config", None) is not None
    most = stored * 8 if quantised else stored  # a weight takes a byte at least, or a bit
    described = _described(name, config, f" in {str(folder)!r}").num_parameters()
    if described > most:
        raise ValueError(
            f"The configuration of the member {name!r} describes {described:,} weights, but {stored:,} bytes are in {str(folder)!r}: they "
            "are incomplete, and the rest would be random."
        )


def _described(name: str, config: PreTrainedConfig, where: str = "") -> Any:
    """What a member's configuration describes, without values."""
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(copy.deepcopy(config))
    except Exception as error:  # sizes that do not go together are noticed wherever they meet
        raise ValueError(f"No model can be made by the configuration of the member {name!r}{where}: {error}") from error


def check_comes_back(name: str, model: PreTrainedModel) -> None:
    """
    Raise a `ValueError` if a folder could not bring a member's weights back: if its quantisation cannot be saved, or its weights are not
    those that its configuration describes.
    """
    check_kept(name, model)
    if method_of(model) is not None:
        return  # its quantiser knows what these weights are
    expected: dict[str, Any] = _described(name, model.config).state_dict()
    found: dict[str, Any] = model.state_dict()
    odd = {key for key, value in expected.items() if key not in found or _form(found[key]) != _form(value)}
    if odd := odd or found.keys() - expected.keys():
        key = min(odd)
        layer = model.get_submodule(next(path for path in _above(key) if path in dict(model.named_modules())))
        kind = type(found[key] if is_wrapped(found.get(key)) else layer)
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) cannot be saved: {len(odd)} of its weights are not as its configuration "
            f"describes them ({key!r}, of {kind.__module__}.{kind.__name__}), and would not come back. Was it quantised after it "
            "was loaded? " + QUANTISE_WHILE_LOADING.format(name=name)
        )


def _form(value: Any) -> Any:
    """The shape of a plain tensor."""
    return None if is_wrapped(value) else getattr(value, "shape", None)


def _above(key: str) -> Iterator[str]:
    """The names of the modules that a weight may be in."""
    while key:
        key = key.rpartition(".")[0]
        yield key


def load_model(
    name: str, place: str | Path, config: PreTrainedConfig, trust_remote_code: bool = False, **options: Any
) -> tuple[Any, dict[str, Any]]:
    r"""
    Load a member.

    Args:
        name (`str`): The member, for messages.
        place (`str` or `Path`): A folder, or a repository.
        config (`PreTrainedConfig`): Its configuration, already looked through.
        trust_remote_code (`bool`, *optional*, defaults to `False`): What the caller said, never what a file says.
        **options: Passed on to `from_pretrained` of `AutoModelForCausalLM`, or of `AutoModelForImageTextToText` for a member that sees.

    Returns:
        `tuple`: The model, in evaluation mode, and what transformers reports about its loading.

    Raises:
        `ValueError`: If it cannot be loaded, naming the member, or if weights are missing, which would be random.
    """
    if options.setdefault("use_safetensors", True) is not True:
        raise ValueError(
            f"The member {name!r} is read from safetensors only: `use_safetensors` cannot be {options['use_safetensors']!r}."
        )
    if Path(place).is_dir() and not trust_remote_code:
        check_size(name, Path(place), config)
    try:
        model, report = auto_class(config).from_pretrained(
            place, config=config, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
    except Exception as error:  # what is in a file decides what is raised, and by which library
        hint = " Pickled weights are not read: save it anew with `save_pretrained`." if "safetensors" in str(error) else ""
        raise ValueError(f"The member {name!r} cannot be loaded from {str(place)!r}: {error}{hint}") from error
    missing = report["missing_keys"]
    if missing and getattr(model, "hf_quantizer", None) is None:
        shown = ", ".join(sorted(missing)[:3])
        raise ValueError(
            f"The weights of the member {name!r} in {str(place)!r} are incomplete: {len(missing)} are missing ({shown}), and would be "
            f"random. Is it saved with its language modeling head, as {type(model).__name__} has it?"
        )
    return model, report
