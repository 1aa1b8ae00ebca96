"""One forward of a member, in which what it does with its cache is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache, StaticCache

from .cache import counts_tokens
from .devices import ran_out_of_memory
from .ragged import is_ragged
from .releases import returned_cache
from .trial import check_static, check_trial


def read(name: str, model: Any, inputs: Mapping[str, Any], cache: Cache | None, use_cache: bool) -> Any:
    r"""
    Let a member read.

    Args:
        name (`str`): The member.
        model (`PreTrainedModel`): Its model.
        inputs (`Mapping[str, Any]`): What its `forward` is given, the cache included.
        cache (`Cache`, *optional*): The states of the tokens before; extended in place.
        use_cache (`bool`): Whether states are kept.

    Returns:
        `ModelOutput`: Its output.

    Raises:
        `ValueError`: If what follows would be read wrongly, or the cache cannot be read from.
    """
    tokens = next(inputs[key] for key in ("input_ids", "inputs_embeds") if key in inputs)
    length = tokens.shape[1]
    check_trial(name, model, tokens.device, inputs.get("attention_mask"), cached=cache is not None)
    if isinstance(cache, StaticCache) and counts_tokens(cache):
        check_static(name, model, tokens.device)
    before = _tokens_held(cache, length)
    try:
        outputs = model(**inputs, use_cache=use_cache, return_dict=True)
    except Exception as error:
        _explain(name, model, cache, error, several_behind=bool(before) and length > 1)
        raise
    if cache is not None and use_cache:
        _check_states(name, model, cache, outputs, before, length)
    return outputs


def _explain(name: str, model: Any, cache: Cache | None, error: Exception, several_behind: bool) -> None:
    """Raise in place of an error that a member ended in because it cannot read from a static cache, or several tokens behind others."""
    if ran_out_of_memory(error) or not (several_behind or isinstance(cache, StaticCache)):
        return
    what = "from a static cache" if isinstance(cache, StaticCache) else "several tokens behind those in its cache"
    remedy = "Use a dynamic cache" if isinstance(cache, StaticCache) else "Decode without an assistant and in one piece"
    raise ValueError(
        f"The member {name!r} ({type(model).__name__}) cannot read {what}: it ends in {type(error).__name__} ({error}). {remedy}."
    ) from error


def _tokens_held(cache: Cache | None, length: int) -> int | None:
    """How many tokens a cache holds before `length` are read; `None` where it does not count them, or where counting would cost time."""
    if cache is None or torch.compiler.is_compiling() or not counts_tokens(cache):
        return None
    if is_ragged(cache):
        return None
    if isinstance(cache, StaticCache) and length == 1:  # their count is a tensor, and looking at it waits for the accelerator
        return None
    return int(cache.get_seq_length())


def _check_states(name: str, model: Any, cache: Cache, outputs: Any, before: int | None, length: int) -> None:
    """Raise if a member did not go on in the cache that it was given, or if that does not count the `length` tokens that it read."""
    returned = returned_cache(outputs)
    if returned is not cache:
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) was given a {type(cache).__name__} and went on with "
            f"{'none' if returned is None else f'another cache, {type(returned).__name__}'}: what it keeps of a text is not in the "
            "cache, so that the next tokens would be wrong. Give another model, or call `generate` with `use_cache=False`."
        )
    held = None if before is None else int(cache.get_seq_length())
    if before is not None and held != before + length:
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) read {length} tokens, but its cache holds {held} instead of {before + length}: "
            "it keeps states of tokens that it was not given, so that masks and positions would be wrong. Give another model, or call "
            "`generate` with `use_cache=False`."
        )
