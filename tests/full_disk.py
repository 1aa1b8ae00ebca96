"""A disk that is full from its n-th write on: half of what was to be written is there, and the rest is refused."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import transformers.modeling_utils
from transformers import PreTrainedTokenizerFast

os_replace, os_rename = os.replace, os.rename


class Disk:
    """Counts what needs space. At number `at` there is none, and none for anything to be written after that."""

    def __init__(self, at: int | None) -> None:
        self.at, self.done, self.full = at, 0, False

    def has_room(self) -> bool:
        self.done += 1
        if self.done == self.at:
            self.full = True
        return not self.full

    def refuse(self) -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _opened(disk: Disk, plain: Any) -> Callable[..., Any]:
    """`open`, whose files write to this disk."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            if disk.has_room():
                return super().write(data)
            if (half := len(memoryview(data).cast("B")) // 2) and disk.done == disk.at:
                return super().write(memoryview(data).cast("B")[:half])
            raise disk.refuse()

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: Any = None,
        errors: Any = None,
        newline: Any = None,
        **more: Any,
    ) -> Any:
        if not set(mode) & set("wxa+") or isinstance(file, int) or not Path(os.fsdecode(file)).is_relative_to(disk.root):
            return plain(file, mode, buffering, encoding, errors, newline, **more)
        if not Path(os.fsdecode(file)).exists() and not disk.has_room():
            raise disk.refuse()  # not even for a name
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    return opened


def _halved(disk: Disk, plain: Any, place: Callable[..., Any]) -> Callable[..., Any]:
    """A function of another language that writes a file: on a full disk, half of it."""

    def saved(*args: Any, **kwargs: Any) -> Any:
        if disk.has_room():
            return plain(*args, **kwargs)
        plain(*args, **kwargs)
        path = Path(place(*args, **kwargs))
        os.truncate(path, path.stat().st_size // 2)
        raise disk.refuse()

    return saved


def _once(disk: Disk, plain: Any) -> Callable[..., Any]:
    """A new entry in a folder: refused when the disk becomes full; what is there can be moved back afterwards."""

    def moved(*args: Any, **kwargs: Any) -> Any:
        renamed = plain in (os_replace, os_rename) and Path(args[0]).parent == Path(args[1]).parent  # which takes no space
        if not renamed and not disk.full and not disk.has_room():
            raise disk.refuse()
        return plain(*args, **kwargs)

    return moved


@contextmanager
def disk(root: Path, at: int | None = None) -> Iterator[Disk]:
    """Everything that is written under `root` goes to a disk that is full from its write number `at` on."""
    found = Disk(at)
    found.root = root
    with pytest.MonkeyPatch.context() as patched:
        opened = _opened(found, io.open)
        patched.setattr(io, "open", opened)
        patched.setattr(builtins, "open", opened)
        for name in ("fsync", "sendfile", "replace", "rename", "mkdir"):
            patched.setattr(os, name, _once(found, getattr(os, name)))
        weights = _halved(found, safetensors.torch.save_file, lambda tensors, filename, *_, **__: filename)
        patched.setattr(safetensors.torch, "save_file", weights)
        patched.setattr(transformers.modeling_utils, "safe_save_file", weights)
        tokenizer = _halved(
            found,
            PreTrainedTokenizerFast._save_pretrained,
            lambda _, save_directory, **__: Path(save_directory) / "tokenizer.json",
        )
        patched.setattr(PreTrainedTokenizerFast, "_save_pretrained", tokenizer)
        yield found


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, the folders in it as `None`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }
