"""Files that are written whole or not at all, whether they can be written, and JSON that any reader takes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_file(path: Path, *, new: bool = False) -> None:
    r"""
    Raise if a file cannot be written, before the work is done whose result it takes. Makes nothing.

    Args:
        path (`Path`): The file.
        new (`bool`, *optional*, defaults to `False`): Whether it may not be there yet.

    Raises:
        `ValueError`: Saying why.
    """
    if path.is_dir():
        raise ValueError(f"{path} cannot be written: it is a folder")
    if path.exists():
        if new:
            raise ValueError(f"{path} is there already, and is not written over: choose another file")
        if not os.access(path, os.W_OK):
            raise ValueError(f"{path} cannot be written: it is not for you to write")
    elif not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: the folder {path.parent} is not for you to write to")


def check_folder(path: Path) -> None:
    r"""
    Raise if a folder, which is made where it is not there, cannot be written to, before the work is done whose result it takes.

    Raises:
        `ValueError`: Saying why.
    """
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{path} cannot be written to: {there} is a file, and no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written to: the folder {there} is not for you to write to")


def as_json(value: Any) -> str:
    """JSON with a line end. Infinity, which JSON has not, is a string that `float` reads: a likelihood of 0 is a result."""
    return json.dumps(_plain(value), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
