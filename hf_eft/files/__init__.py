"""Files that are written whole or not at all, whether they can be written, and JSON: as any reader takes it, and read from a file."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """
    Files to write in place of `paths`, whose names they get once all are written, on the disk. What fails leaves `paths` as they were,
    and nothing beside them. A pipe or a device is written to as it comes.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]  # a link goes on being one
    # Names of their own: another process that writes the same file must not have its half renamed to the whole.
    partials = {
        target: target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
        for target in targets
        if target.is_file() or not target.exists()
    }
    try:
        yield [partials.get(target, target) for target in targets]
        for target, partial in partials.items():
            if target.exists():
                shutil.copymode(target, partial)
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
        for target, partial in partials.items():
            partial.replace(target)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise


def write(path: Path, text: str, *, new: bool = False) -> None:
    r"""
    Write a file so that it is there whole or not at all.

    Raises:
        `FileExistsError`: If it is there, and must be `new`.
    """
    if new and path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with replacing(path) as (partial,):
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Have a folder be there. What fails takes away again what was made for it, unless something else has come into it."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


def load_json(path: Path) -> Any:
    """
    What is in a file of JSON that this machine wrote. What others wrote goes through [`~hf_eft.files.trust.read_json`].

    Raises:
        `ValueError`: If it is none, naming the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error


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
        if not path.is_file():
            return  # a pipe or a device
    folder = Path(os.path.realpath(path)).parent  # where a new file takes the name of the old one
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    if not os.access(folder, os.W_OK | os.X_OK):
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
