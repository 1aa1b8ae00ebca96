"""
What a model does that nothing about it says, found by trying it once on a few tokens: does it go on in a cache, and behind
padding, as it reads the whole text?

Most models are not tried: those that are told positions and keep their states in the layers of transformers' own caches are
what `generate` is made for.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, StaticCache

from .cache import EFTCache
from .devices import ran_out_of_memory
from .ragged import make_ragged, make_whole, masks_of, places_of, why_not
from .releases import cache_argument
from .roll_back import why_not_moved

# Tokens: read in one piece, then one by one, behind that much padding. No multiples of the blocks of four or more that some
# models sum up.
_PROMPT, _MORE, _PADDING = 9, 3, 7
# How far the logits of most tokens may be off, as a share of their spread. Rounding is a few hundredths in half precision;
# other positions or other states are most of the spread in most models.
_SHARE, _SHARE_OF_HALF = 0.01, 0.1

_found: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, str | None]] = weakref.WeakKeyDictionary()
_static: weakref.WeakKeyDictionary[torch.nn.Module, str | None] = weakref.WeakKeyDictionary()
_ragged: weakref.WeakKeyDictionary[torch.nn.Module, str | None] = weakref.WeakKeyDictionary()


def check_trial(name: str, model: Any, device: torch.device, attention_mask: Any, cached: bool) -> None:
    r"""
    Raise if a member would read what follows wrongly.

    Args:
        name (`str`): The member.
        model (`PreTrainedModel`): Its model.
        device (`torch.device`): Where it reads.
        attention_mask (`torch.Tensor` of shape `(batch, positions)`, or any other mask): 0 where a token is padding.
        cached (`bool`): Whether the member goes on in a cache.
    """
    found, who = _what_is_found(model, device), f"The member {name!r} ({type(model).__name__})"
    if found.get("text") is not None:
        raise ValueError(f"{who} does not read a text of ids: {found['text']}. Give a model of text.")
    if cached and found.get("cache") is not None:
        raise ValueError(
            f"{who} does not go on in a cache as it reads the whole text: {found['cache']}. Give another model, or call `generate` with "
            "`use_cache=False`."
        )
    if found.get("padding") is not None and _is_padded(attention_mask):
        raise ValueError(
            f"{who} does not read a text behind padding as it reads it alone: {found['padding']}. Give rows of one length, or one row at a "
            "time."
        )


def reads_padding(model: Any, device: torch.device) -> bool:
    """Whether a model reads a text behind padding as it reads it alone."""
    return _what_is_found(model, device).get("padding") is None


def check_moving(name: str, model: Any, device: torch.device) -> None:
    """Raise if a member would read wrongly what follows states that were moved, as those of rows are that keep fewer drafted tokens."""
    found = _what_is_found(model, device)
    if (wrong := found.get("padding") or found.get("moving")) is not None:
        raise ValueError(
            f"Rows that keep fewer drafted tokens than others are moved and padded, and the member {name!r} ({type(model).__name__}) does "
            f"not read on behind padding as it reads the text alone: {wrong}. Speculate with one row at a time."
        )


def check_static(name: str, model: Any, device: torch.device) -> None:
    """Raise if a member reads wrongly from a static cache. Those that say that they can (`_can_compile_fullgraph`) are not tried."""
    if model._can_compile_fullgraph or torch.compiler.is_compiling() or model.training:
        return
    if model not in _static:
        _static[model] = _try_static(model, device)
    if (wrong := _static[model]) is not None:
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) does not say that it can read from a static cache (`_can_compile_fullgraph`), "
            f"and does not read in one as it reads the whole text: {wrong}. Use a dynamic cache."
        )


@torch.no_grad()
def _try_static(model: Any, device: torch.device) -> str | None:
    ids = torch.arange(1, 1 + _PROMPT + _MORE, device=device)[None]
    alone, wrong = _ends(lambda: _read(model, ids, padding=0, pieces=[ids.shape[1]], cache=None))
    if alone is None:
        return wrong
    room = ids.shape[1] + 2 * _PADDING

    def read(padding: int) -> torch.Tensor:
        cache = StaticCache(config=model.config, max_cache_len=room)
        return _read(model, ids, padding=padding, pieces=[_PROMPT] + [1] * _MORE, cache=cache)

    return _difference(model, alone, lambda: read(0)) or _difference(model, alone, lambda: read(_PADDING))


def check_ragged(name: str, model: Any, cache: Cache, device: torch.device) -> None:
    """Raise if a member cannot read in a static cache whose rows end at different tokens. Every model is tried once."""
    if (wrong := why_not(model, cache)) is None:
        if model not in _ragged:
            _ragged[model] = _try_ragged(model, device)
        wrong = _ragged[model]
    if wrong is not None:
        raise ValueError(
            f"Speculation reads each row where it ends, which the member {name!r} ({type(model).__name__}) cannot in a static cache: "
            f"{wrong}. Use a dynamic cache."
        )


@torch.no_grad()
def _try_ragged(model: Any, device: torch.device) -> str | None:
    ids = torch.arange(1, 1 + _PROMPT + _MORE, device=device)[None]
    alone, wrong = _ends(lambda: _read(model, ids, padding=0, pieces=[ids.shape[1]], cache=None))
    if alone is None:
        return wrong
    return _difference(model, alone, lambda: _read_ragged(model, ids))


def _read_ragged(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits of the last ids, `(_MORE, vocab)`, read in one piece behind padding, where another token was and was taken back."""
    parameters, room = inspect.signature(model.forward).parameters, ids.shape[1] + 2 * _PADDING
    cache = StaticCache(config=model.config, max_cache_len=room)
    make_whole(cache, room)
    _read(model, torch.cat([ids[:, :_PROMPT], ids[:, :1]], dim=1), padding=_PADDING, pieces=[_PROMPT + 1], cache=cache)
    ends = make_ragged(cache, 1).sub_(1)
    places = places_of(ends, _MORE)
    valid = (torch.arange(room, device=ids.device) >= _PADDING)[None]
    inputs = {
        "attention_mask": masks_of(model, places, valid, room), "use_cache": True, str(cache_argument(parameters)): cache,
        **({"position_ids": places - _PADDING} if "position_ids" in parameters else {}),
    }  # fmt: skip
    return model(input_ids=ids[:, -_MORE:], **inputs).logits[0].float()


def _what_is_found(model: Any, device: torch.device) -> dict[str, str | None]:
    if torch.compiler.is_compiling() or model.training:
        return {}
    if model not in _found:
        _found[model] = _try(model, device) if _is_unusual(model) else {}
    return _found[model]


def _is_padded(mask: Any) -> bool:
    return isinstance(mask, torch.Tensor) and mask.dim() == 2 and not bool(mask.all())


def _is_unusual(model: Any) -> bool:
    """Whether a model counts for itself where it is, has layers of cache that are its own, or sees pictures with what reads the text."""
    parameters, config = inspect.signature(model.forward).parameters, model.config
    if (
        type(model).__module__.partition(".")[0] == __name__.partition(".")[0]
    ):  # a model of this package, that reads others byte by byte
        return False
    if "position_ids" not in parameters and not getattr(model, "_is_stateful", False):
        return True
    layers = DynamicCache(config=config).layers
    if any(type(layer).__module__ != DynamicLayer.__module__ for layer in layers):
        return True
    return "pixel_values" in parameters and config.get_text_config(decoder=True) is config


@torch.no_grad()
def _try(model: Any, device: torch.device) -> dict[str, str | None]:
    ids = torch.arange(1, 1 + _PROMPT + _MORE, device=device)[None]  # (1, length): any tokens
    whole, pieces = [ids.shape[1]], [_PROMPT] + [1] * _MORE

    def growing() -> DynamicCache:
        return DynamicCache(config=model.config)

    alone, wrong = _ends(lambda: _read(model, ids, padding=0, pieces=whole, cache=None))
    if alone is None:
        return {"text": wrong}
    found = {"cache": _difference(model, alone, lambda: _read(model, ids, padding=0, pieces=pieces, cache=growing()))}
    in_order = found["cache"] is None
    reading = (pieces, growing()) if in_order else (whole, None)
    found["padding"] = _difference(model, alone, lambda: _read(model, ids, _PADDING, *reading))
    if in_order:
        kind = next(filter(None, map(why_not_moved, growing().layers)), None)
        found["moving"] = (
            _difference(model, alone, lambda: _read_moved(model, ids)) if kind is None else f"its states are in {kind}"
        )
    return found


def _ends(read: Callable[[], torch.Tensor]) -> tuple[torch.Tensor | None, str | None]:
    """The logits of a way of reading, or what it ends in."""
    try:
        return read(), None
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if ran_out_of_memory(error):
            raise
        return None, f"it ends in {type(error).__name__} ({error})"


def _difference(model: Any, alone: torch.Tensor, read: Callable[[], torch.Tensor]) -> str | None:
    """What is wrong with the logits of a way of reading; `None` if they are those of the ids alone, `(length, vocab)`."""
    logits, wrong = _ends(read)
    if logits is None:
        return wrong
    expected = alone[-len(logits) :]
    both = expected.isfinite() & logits.isfinite()  # some models rule tokens out
    shares = _spread(logits - expected, both) / _spread(expected, both)  # (length,)
    off = max(float(part.median()) for part in (shares[:-_MORE], shares[-_MORE:]) if len(part))
    share = _SHARE if model.dtype in (torch.float32, torch.float64) else _SHARE_OF_HALF
    return None if off <= share else f"its logits are off by {off:.0%} of their spread"


def _spread(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each row's values, `(length, vocab)`, where they are asked for."""
    count = where.sum(-1, keepdim=True).clamp(min=1)
    mean = values.where(where, 0).sum(-1, keepdim=True) / count
    return ((values - mean).where(where, 0).square().sum(-1) / count.squeeze(-1)).sqrt()


def _read(model: Any, ids: torch.Tensor, padding: int, pieces: list[int], cache: Cache | None) -> torch.Tensor:
    """The logits of the ids, `(length, vocab)`, read piece by piece behind padding, in an empty cache if there is one."""
    parameters = inspect.signature(model.forward).parameters
    text = torch.cat([ids.new_zeros(1, padding), ids], dim=1)
    mask = torch.ones_like(text)
    mask[:, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    inputs: dict[str, Any] = {"use_cache": cache is not None}
    if cache is not None:
        inputs[str(cache_argument(parameters))] = cache
    logits, start = [], 0
    for stop in torch.tensor([padding + pieces[0], *pieces[1:]]).cumsum(0).tolist():
        if "position_ids" in parameters:
            inputs["position_ids"] = positions[:, start:stop]
        logits.append(model(input_ids=text[:, start:stop], attention_mask=mask[:, :stop], **inputs).logits[0])
        start = stop
    return torch.cat(logits)[padding:].float()


def _read_moved(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits of the last ids, `(_MORE, vocab)`: they are read, taken back by moving the row to the right, and read again."""
    cache = EFTCache.attach(DynamicCache(config=model.config), {"tried": model})
    inputs: dict[str, Any] = {"use_cache": True, str(cache_argument(inspect.signature(model.forward).parameters)): cache}
    model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
    cache.roll_back({"tried": 0}, torch.tensor([_MORE], device=ids.device), {"tried": 0})
    mask = torch.ones_like(torch.cat([ids, ids[:, :_MORE]], dim=1))
    mask[:, :_MORE] = 0
    logits = []
    for i in range(_PROMPT, _PROMPT + _MORE):
        seen = mask[:, : i + 1 + _MORE]
        if "position_ids" in inspect.signature(model.forward).parameters:
            inputs["position_ids"] = torch.full_like(ids[:, :1], i)
        logits.append(model(input_ids=ids[:, i : i + 1], attention_mask=seen, **inputs).logits[0])
    return torch.cat(logits).float()
