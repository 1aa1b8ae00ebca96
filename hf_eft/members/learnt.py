"""Deltas that learnt through a base: what they say of themselves, and whether the base that they are used with is that one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..files.learnt import KEY, Base, Learnt
from ..files.repositories import is_repo_id, source_of
from ..recipe.combination import BASE, REFERENCE, TUNED, Coefficient
from .adapters import Adapted, is_folder, is_peft

logger = logging.get_logger(__name__)

_ROWS, _COLUMNS = 64, 64  # of the embedding table: what any fine-tuning of all weights has changed somewhere


def describe_base(model: Any) -> Base:
    r"""
    What tells a base from others: its shape, where it came from, and a digest of some of its weights, which is the same in float32 and
    bfloat16, and in any folder.

    Args:
        model (`PreTrainedModel`): The base.

    Raises:
        `ValueError`: If its configuration does not say of what shape it is.
    """
    model = _own(model)
    place, commit = source_of(str(getattr(model.config, "_name_or_path", "") or ""))
    return shape_of(model.config, place or None, commit or getattr(model.config, "_commit_hash", None), _sample(model))


def shape_of(config: Any, name: str | None, revision: str | None, sample: str | None = None) -> Base:
    """A base by its configuration, as [`describe_base`] does where there is a model."""
    text = config.get_text_config(decoder=True)
    try:
        found = {"model_type": str(config.model_type)} | {
            key: int(getattr(text, key)) for key in ("hidden_size", "num_hidden_layers", "vocab_size")
        }
    except (AttributeError, TypeError) as error:
        raise ValueError(f"The configuration of the base, a {config.model_type}, does not say its shape: {error}") from error
    known = {"name": name if is_repo_id(name) else None, "revision": revision, "sample": sample}
    return Base.read({**found, **{key: value for key, value in known.items() if value is not None}})


def _own(model: Any) -> Any:
    """The model itself, where it is read byte by byte."""
    return model.model if model.config.model_type == "byte_level" else model


def _sample(model: Any) -> str | None:
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or weight.is_meta or not weight.is_floating_point():
        return None  # offloaded to a disk, or quantised
    rows = torch.linspace(0, weight.shape[0] - 1, min(_ROWS, weight.shape[0])).long().to(weight.device)
    part = weight.detach()[rows, :_COLUMNS].to(torch.bfloat16).contiguous().cpu()  # (rows, columns)
    return hashlib.sha256(part.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def learnt_of(model: Any, adapter: str | Path | None = None) -> Learnt | None:
    r"""
    What a model, or an adapter, says of how it learnt.

    Args:
        model (`PreTrainedModel`, `PeftModel`, `str` or `Path`): The model, or the folder of an adapter.
        adapter (`str` or `Path`, *optional*): The name of the adapter in the model, or its folder.

    Returns:
        [`Learnt`] or `None`: `None` for what was tuned alone.

    Raises:
        `ValueError`: If it cannot be read.
    """
    if isinstance(adapter, Path) or is_folder(model):
        return Learnt.beside(Path(adapter or model))
    if adapter is None and is_peft(model):
        names = list(model.peft_config)
        adapter = names[0] if len(names) == 1 else None
    found = getattr(_own(model).config if adapter is None else model.peft_config.get(adapter), KEY, None)
    return found if found is None or isinstance(found, Learnt) else Learnt.read(found)


def set_learnt(model: Any, learnt: Learnt | None, adapter: str | None = None) -> None:
    """Have a model, or the adapter of that name in it, say how it learnt: in its configuration, which is saved with it."""
    if adapter is None:
        model.config.__dict__.pop(KEY, None)
        if learnt is not None:
            setattr(model.config, KEY, learnt.to_dict())
    else:
        setattr(model.peft_config[adapter], KEY, learnt)  # not a field of PEFT's: it is written beside


def learnt_by(members: Any) -> dict[str, Learnt]:
    """By tuned member, what it says of how it learnt, of those that say it; [`~hf_eft.members.members.Members`] are given."""
    found = {}
    for name, model in members.models.items():
        if name in (BASE, REFERENCE):
            continue
        member = members.adapters.get(name, Adapted(model, None))
        said = learnt_of(member.trunk, member.adapter)
        if said is not None:
            found[name] = said
    return found


def recommended(alpha: Coefficient | None, beta: Coefficient | None, combination: Any, tuned: Any) -> Coefficient | None:
    """The strength of a recipe: where the caller says nothing, the one that the only tuned member is to be used at."""
    if alpha is not None or beta is not None or combination is not None or tuned is None:
        return alpha
    if isinstance(tuned, Mapping):
        if set(tuned) != {TUNED}:
            return alpha
        tuned = tuned[TUNED]
    if isinstance(tuned, Adapted):
        said = learnt_of(tuned.trunk, tuned.adapter)
    elif is_folder(tuned) or is_peft(tuned) or hasattr(tuned, "config"):
        said = learnt_of(tuned)
    else:
        said = None
    return said.recommended_alpha if said is not None else alpha


def say_where_used(members: Any) -> None:
    """Warn of each tuned member that learnt through other bases than the one that it is used with."""
    found = learnt_by(members)
    if not found:
        return
    base = members.models.get(BASE)
    described = None if base is None else describe_base(base)
    for name, learnt in found.items():
        say_of(name, learnt, described)


def say_of(name: str, learnt: Learnt, base: Base | str | None) -> None:
    r"""
    Say of one member that it learnt through other bases: a warning; where it learnt through several, information, once.

    Args:
        name (`str`): The member.
        learnt ([`Learnt`]): What it says of itself.
        base ([`Base`] or `str`, *optional*): What it is used with; only the name of what cannot be described.
    """
    if any(known.name == base for known in learnt.bases) if isinstance(base, str) else base is not None and learnt.knows(base):
        return
    through = " and ".join(map(str, learnt.bases))
    if base is None:
        warnings.warn(
            f"The member {name!r} learnt through {through} and is a delta for that: without a base it is no model of its own.",
            stacklevel=2,
        )
    elif len(learnt.bases) > 1:
        logger.warning_once(
            f"The member {name!r} learnt through several bases, {through}, so as to serve others: it is used with {base}. Measure it there."
        )
    else:
        warnings.warn(
            f"The member {name!r} learnt through {through} and is used with another base, {base}. A delta that learnt through one base can "
            "be worse on another than one that was tuned alone: measure it, or train it through several (`hf-eft tune --base ... --base "
            "...`).",
            stacklevel=2,
        )
