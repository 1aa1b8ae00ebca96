"""What a trainer writes between steps, and reads when it goes on: the learner alone."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..members.adapters.given import is_peft

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WEIGHTS = "model.safetensors"


def save(learner: Any, folder: str | Path, adapter: str | None, **options: Any) -> None:
    r"""
    Write the learner as it writes itself.

    Args:
        learner (`PreTrainedModel` or `PeftModel`): The learner.
        folder (`str` or `Path`): Where to.
        adapter (`str`, *optional*): Which adapter it is.
        **options: Passed on to its `save_pretrained`.
    """
    if not is_peft(learner):
        learner.save_pretrained(folder, **options)
        return
    options = {key: value for key, value in options.items() if key in ("is_main_process", "save_embedding_layers")}
    learner.save_pretrained(str(folder), selected_adapters=[adapter], **options)
    if options.get("is_main_process", True):
        written = Path(folder) / ("" if adapter == "default" else str(adapter)) / _ADAPTER_WEIGHTS
        # A trainer looks for this name in whatever is no `PeftModel`. One file with two names, where there can be such.
        _link(written, Path(folder) / _WEIGHTS)


def _link(file: Path, name: Path) -> None:
    name.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(file, name)
        return
    shutil.copyfile(file, name)


def load(learner: Any, weights: Mapping[str, Any], adapter: str | None) -> None:
    r"""
    Give the learner the weights of a checkpoint.

    Args:
        learner (`PreTrainedModel` or `PeftModel`): The learner.
        weights (`Mapping[str, torch.Tensor]`): What [`save`] wrote.
        adapter (`str`, *optional*): Which adapter it is.

    Raises:
        `ValueError`: If these are not all its weights, or more.
    """
    if is_peft(learner):
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        own: Any = get_peft_model_state_dict(learner, adapter_name=str(adapter))
        _check(set(own) - set(weights), set(weights) - set(own))
        set_peft_model_state_dict(learner, dict(weights), adapter_name=str(adapter))
        return
    own = learner.state_dict()
    _check(set(own) - set(weights) - set(learner.all_tied_weights_keys), set(weights) - set(own))
    learner.load_state_dict(weights, strict=False)  # those that are tied are there once
    learner.tie_weights()


def _check(missing: set[str], unexpected: set[str]) -> None:
    if missing or unexpected:
        raise ValueError(
            f"This is no checkpoint of the member that learns: missing are {sorted(missing)[:3] or 'none'}, and it has no "
            f"{sorted(unexpected)[:3] or 'others'}. Make the model as it was when the checkpoint was written."
        )
