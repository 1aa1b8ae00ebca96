"""States of several members that change together: where that was cut off half way, nobody goes on from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def together(cache: Any) -> Iterator[None]:
    """
    Change a cache's states of all members. Where that fails (memory runs out, the user interrupts), some are those of more tokens than
    others, or in another order, which nothing about them says: the cache is noted as broken until it is `reset`.
    """
    try:
        yield
    except BaseException:
        if cache is not None:
            cache.broken = True
        raise


def check_whole(cache: Any) -> None:
    """Raise if a cache was left half way, or holds rows of different lengths."""
    if cache.broken:
        raise ValueError(
            "`cache` was left half way by a call that failed or was interrupted: its members hold states of different tokens. Call "
            "`cache.reset()` and read the text again, or begin with a new cache."
        )
    if cache.uneven:
        raise ValueError(
            "`cache` is of a call with an assistant or a `seed` whose rows ended at different tokens: it holds of each row what was "
            "read, not what fills the shorter ones up. Go on from such a batch without its cache."
        )
