"""Members that are LoRA adapters: merged into a copy of the weights of the model that they are on, as those are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

_FILE, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# Settings under which weights are `W + scale * B A`; any other value is refused.
_PLAIN = {"use_dora": False, "bias": "none", "lora_bias": False, "use_qalora": False, "alora_invocation_tokens": None}


class Merged:
    r"""
    The weights of a model with an adapter merged into them, in the dtype that they have.

    Args:
        name (`str`): The member.
        folder (`Path`): That of the adapter.

    Raises:
        `ValueError`: If it is no plain LoRA, or a weight of it belongs to nothing that was read.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if config.get("peft_type") != "LORA":
            self._refuse(f"its method is {config.get('peft_type')!r:.80}, expected 'LORA'")
        for key, plain in _PLAIN.items():
            if config.get(key, plain) not in (plain, None):
                self._refuse(f"`{key}` is {config[key]!r:.80}, expected {plain!r}")
        self._transposed = bool(config.get("fan_in_fan_out"))
        self._config = config
        self._parts: dict[str, dict[str, torch.Tensor]] = {}
        with safe_open(folder / _FILE, "pt") as file:
            for key in sorted(file.keys()):
                module, _, part = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
                if part not in ("lora_A", "lora_B"):
                    self._refuse(f"it has the tensor {key!r:.200}, which is of no plain LoRA layer")
                self._parts.setdefault(module, {})[part] = file.get_tensor(key)

    def over(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same names, with what the adapter changes changed."""
        left = set(self._parts)
        for name, tensor in weights:
            module = name.removesuffix(".weight")
            if module in self._parts:
                left.discard(module)
                tensor = self._with(module, tensor)
            yield name, tensor
        if left:
            self._refuse(f"its model has no weights {', '.join(sorted(left)[:3])}, which it changes")

    def _with(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        a, b = (self._parts[module][part].float() for part in ("lora_A", "lora_B"))
        delta = (b @ a) * self._scale(module, a.shape[0])
        if self._transposed:
            delta = delta.T
        if delta.shape != weight.shape or not weight.is_floating_point():
            self._refuse(f"it changes {module!r} by {tuple(delta.shape)}, which is {tuple(weight.shape)} of {weight.dtype}")
        return (weight.float() + delta).to(weight.dtype)

    def _scale(self, module: str, rank: int) -> float:
        alpha = float(_of(self._config.get("alpha_pattern"), module, self._config["lora_alpha"]))
        return float(alpha / rank**0.5 if self._config.get("use_rslora") else alpha / rank)

    def _refuse(self, reason: str) -> None:
        raise ValueError(
            f"The adapter of the member {self.name!r} cannot be merged: {reason}. Merge it with PEFT (`merge_and_unload`) and save the "
            "combination with the merged model."
        )


def _of(pattern: Any, module: str, otherwise: Any) -> Any:
    """A module's own value, by the end of its name, as PEFT finds it."""
    for key, value in (pattern or {}).items():
        if module == key or module.endswith(f".{key}"):
            return value
    return otherwise
