"""
What differs between the releases of transformers that are supported. When 5.23 is given up, this file is deleted: a cache is then called
`cache` everywhere.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import transformers
from packaging.version import Version

_Function = TypeVar("_Function", bound=Callable[..., Any])

# 5.24 calls a cache `cache` in arguments and outputs, where it had been `past_key_values`, and `cache_params` in state-space models.
_NAMES = ("cache", "past_key_values", "cache_params")

SINCE_5_24 = Version(transformers.__version__).release >= (5, 24)

#: What `generate` and the outputs of models call a cache.
CACHE = "cache" if SINCE_5_24 else "past_key_values"


def cache_argument(accepted: Collection[str]) -> str | None:
    """What a `forward` that accepts these arguments calls its cache; `None` if it takes none."""
    return next((name for name in _NAMES if name in accepted), None)


def cache_of(outputs: Any) -> Any:
    """The cache in what a model or `generate` returned; `None` if there is none."""
    return getattr(outputs, CACHE)


def returned_cache(outputs: Mapping[str, Any]) -> Any:
    """The cache in what one model returned, which calls it as its `forward` does."""
    return next((value for name, value in outputs.items() if name in _NAMES and value is not None), None)


def renamed(kwargs: Mapping[str, Any], name: str = CACHE) -> dict[str, Any]:
    """
    Arguments with the cache, whichever of its names it came under, under one.

    Raises:
        `TypeError`: If it came under two.
    """
    given = [each for each in _NAMES[:2] if each in kwargs]
    if not given:
        return dict(kwargs)
    if len(given) > 1:
        raise TypeError("`cache` and `past_key_values` are two names of one argument: give one of them.")
    return {name if key == given[0] else key: value for key, value in kwargs.items()}


def takes_cache(function: _Function) -> _Function:
    """Let a method that calls its cache `cache` take it under both names, and say the release's in its signature."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **renamed(kwargs, "cache"))

    signature = inspect.signature(function)
    parameters = [p.replace(name=CACHE) if p.name == "cache" else p for p in signature.parameters.values()]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # `generate` reads it
    return wrapped  # type: ignore[return-value]
