"""What an evaluation has measured already: one file for each system and task, and what it was measured of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import transformers

from .._version import __version__
from ..files import as_json, load_json, write
from ..members.adapters.views import adapter_modules
from ..members.quantised import values_of
from ..modeling_eft import EFTForCausalLM
from ..recipe.combination import Combination
from ..recipe.rules.rule import Written

_SAMPLED = 64  # values of each tensor that a fingerprint looks at
_STEPS = 64  # positions at which a schedule that is a function is looked at
# What says nothing about how a model computes.
_NOT_THE_MODEL = ("transformers_version", "_name_or_path", "architectures")


def model_fingerprint(model: Any) -> str:
    """
    A digest of a model: configuration, type, generation defaults, and some values of every tensor, so that a model with other weights has
    another one without reading all of them. Of a combination: its members', and the recipe.
    """
    if isinstance(model, EFTForCausalLM):
        members = {name: model_fingerprint(member) for name, member in model.members.items()}
        return _digest([members, _recipe(model.combination)])
    digest = hashlib.sha256()
    for settings in (model.config.to_dict(), model.generation_config.to_dict()):
        digest.update(_digest({key: value for key, value in settings.items() if key not in _NOT_THE_MODEL}).encode())
    if hasattr(model, "peft_config"):
        digest.update(_digest([sorted(module.active_adapters) for _, module in adapter_modules(model)]).encode())
    for name, tensor in values_of(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta and tensor.numel():  # offloaded weights are not there to be read
            flat = tensor.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // _SAMPLED)].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def task_fingerprint(task: Any, limit: int | None) -> str:
    """A digest of a task: its configuration, the source of its functions, and the items that are measured."""
    config = task.dump_config()
    config.get("metadata", {}).pop("config_source", None)  # where the file is
    docs = task.eval_docs
    return _digest([config, [docs[i] for i in range(len(docs) if limit is None else min(limit, len(docs)))]])


def versions() -> dict[str, str]:
    """Of the libraries that decide what is measured."""
    from .harness import VERSION

    return {
        "hf_eft": __version__,
        "lm_eval": VERSION,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class Store:
    """
    The results in a folder. Each is written whole or not at all, as soon as it is there, so that a run that is killed loses one at most.

    Args:
        folder (`Path`, *optional*): The folder; nothing is kept if left out.
        restart (`bool`): Whether to take no notice of what is there.
    """

    def __init__(self, folder: Path | None, restart: bool) -> None:
        self._folder, self._restart = folder, restart
        if folder is not None:
            (folder / "results").mkdir(parents=True, exist_ok=True)

    def find(self, task: str, system: str, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
        """
        What was measured, or `None`.

        Raises:
            `ValueError`: If it was measured of something else, or the file cannot be read.
        """
        path = self._path(task, system)
        if path is None or self._restart or not path.is_file():
            return None
        try:
            found: dict[str, Any] = load_json(path)
            measured_of = dict(found["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a result of an evaluation ({error!r}). Remove it, or restart.") from error
        if other := [key for key, value in fingerprint.items() if measured_of.get(key) != value]:
            raise ValueError(
                f"{path} was measured with another {' and '.join(other)} than is asked for now. Give another output folder, or "
                "restart (`restart=True`, `--restart`), which measures everything in it anew."
            )
        return found

    def keep(self, task: str, system: str, result: Mapping[str, Any]) -> None:
        """Write a result."""
        if path := self._path(task, system):
            write(path, as_json(result))

    def _path(self, task: str, system: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / "results" / f"{quote(task, safe='')}--{quote(system, safe='')}.json"


def _recipe(combination: Combination) -> Any:
    """Its description; of functions, which that leaves out, the values, and of a user's rules the code."""
    names = sorted(combination.coefficients)
    values = combination.at(range(_STEPS), names).tolist() if combination.scheduled else None
    own = [_code(rule) for rule in combination.each_rule if isinstance(rule, Written)]
    return [combination.to_dict(), names, values, *own]


def _code(rule: Written) -> Any:
    """What tells a rule by a function from others: its code, and what it closes over."""
    code = getattr(rule.function, "__code__", None)
    said = [] if code is None else [code.co_code.hex(), repr(code.co_consts), repr(code.co_names)]
    return [repr(rule), *said, [repr(cell.cell_contents) for cell in getattr(rule.function, "__closure__", None) or ()]]


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()
