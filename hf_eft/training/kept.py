"""The last states of models that do not learn, kept on disk: over several epochs each text is read once."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils import logging

from ..members.devices import execution_device

logger = logging.get_logger(__name__)

_SHARD = 64 * 2**20  # bytes: what a run that is stopped may have to compute again
_SAMPLE = 16  # numbers of each weight, which tell two models of one configuration apart


class KeptStates:
    r"""
    A model's last states on disk, text by text: what it gave when it read the text first, in its own dtype, bit for bit. A text is known by
    its tokens, whatever batch and padding it comes in. Shards are safetensors files, written whole and memory-mapped; those that are there
    are used again, by the same weights only.

    Args:
        folder (`Path`): Where the states of all models are; those of this one lie in a folder of their own.
        model (`PreTrainedModel`): The model.
        tokens (`int`): How many tokens the texts have together.

    Raises:
        `OSError`: If there is less room on the disk than they will take.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, tokens: int) -> None:
        self.folder = folder / fingerprint(model)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._device = execution_device(model)
        self._pending: dict[str, torch.Tensor] = {}
        self._files: dict[str, Any] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._read(shard)
        self.bytes = size(model, tokens)
        there = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        free = shutil.disk_usage(self.folder).free
        said = f"{tokens:,} tokens of {type(model).__name__} take {self.bytes / 2**20:,.1f} MiB in {str(self.folder)!r}"
        if self.bytes - there > free:
            raise OSError(
                f"The states of {said}, where {free / 2**20:,.1f} MiB are free. Choose another folder, or do without."
            )
        logger.warning(f"The states of {said}; {there / 2**20:,.1f} MiB are there.")

    def __len__(self) -> int:
        return len(self._files) + len(self._pending)

    def states(
        self, input_ids: torch.Tensor, mask: torch.Tensor | None, compute: Callable[[torch.Tensor, Any], torch.Tensor]
    ) -> torch.Tensor:
        r"""
        The states of a batch, `(batch, positions, width)`; 0 where there is padding.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, positions)`): The texts.
            mask (`torch.Tensor` of shape `(batch, positions)`, *optional*): 0 where a token is padding.
            compute (`Callable`): Has the model read rows and their mask.
        """
        seen = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask != 0
        keys = [_key(ids[real]) for ids, real in zip(input_ids, seen, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._files and key not in self._pending]
        if new:
            found = compute(input_ids[new], None if mask is None else mask[new])
            for i, values in zip(new, found, strict=True):
                self._pending[keys[i]] = values[seen[i].to(values.device)].cpu()
            if sum(values.nbytes for values in self._pending.values()) >= _SHARD:
                self.flush()
        kept = [self._pending[key] if key in self._pending else self._files[key].get_tensor(key) for key in keys]
        states = torch.zeros(*input_ids.shape, kept[0].shape[-1], dtype=kept[0].dtype, device=self._device)
        for i, values in enumerate(kept):
            states[i, seen[i].to(self._device)] = values.to(self._device)
        return states

    def flush(self) -> None:
        """Write what was computed since the last shard."""
        if not self._pending:
            return
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        unfinished = shard.with_suffix(".tmp")
        save_file(self._pending, unfinished)
        unfinished.replace(shard)
        self._pending = {}
        self._read(shard)

    def _read(self, shard: Path) -> None:
        file = safe_open(shard, framework="pt")
        self._files |= dict.fromkeys(file.keys(), file)


def size(model: PreTrainedModel, tokens: int) -> int:
    """How many bytes the states of so many tokens take."""
    config = model.config.get_text_config(decoder=True)
    return tokens * config.hidden_size * torch.empty((), dtype=model.dtype).element_size()


def _key(ids: torch.Tensor) -> str:
    """What a text is known by, under the dtype that is computed in."""
    kind = ids.device.type
    computed = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
    return hashlib.sha256(computed.encode() + ids.cpu().numpy().tobytes()).hexdigest()[:32]


def fingerprint(model: PreTrainedModel) -> str:
    """What tells a model's weights from others: its configuration, and some numbers of each weight."""
    found = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for name, weight in model.named_parameters():
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta" and weight.is_floating_point():
            step = max(1, weight.numel() // _SAMPLE)
            found.update(weight.detach().reshape(-1)[::step][:_SAMPLE].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
