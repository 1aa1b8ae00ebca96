"""
An input of any size in parts, each a few batches of its lines: where a part lies, what it asks, and a folder with a file of results for
each. Knows no model, and not who answers the parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..files.json_lines import Line, is_array, json_value, looks_like_json, parsed, text_lines
from .batch import Item, item_of_json, item_of_text

TEXT, JSON, PARQUET, SAVED = "text", "json", "parquet", "saved data set"
_ENDINGS = {".parquet": PARQUET, ".jsonl": JSON, ".ndjson": JSON, ".json": JSON, ".txt": TEXT}
_SAVED = ("state.json", "dataset_info.json")  # what `save_to_disk` of datasets leaves in a folder
_BREAK = re.compile(b"\r\n|\n|\r")  # as `text_lines` has it
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # marks of UTF-16 and UTF-32
_HEAD, _CHUNK = 2**16, 2**24  # bytes: what tells lines of JSON from lines of text; what is read at once


@dataclass(frozen=True)
class Part:
    """Lines that follow each other in one file."""

    number: int  # from 0, in the order of the input
    path: str
    first: int  # the number of the first line in the whole input, from 1
    lines: int
    start: int  # a byte of a file of lines; a row of a table
    length: int  # bytes, or rows


@dataclass(frozen=True)
class Input:
    """Files of one kind, which are read in this order, and their lines numbered through."""

    storage: Any  # a `pyarrow.fs.FileSystem`
    files: tuple[str, ...]
    kind: str

    def look(self, path: str, lines: int) -> dict[str, Any]:
        """How many lines a file has, where each part of so many `lines` begins, its size, and what tells its content from another."""
        if self.kind in (TEXT, JSON):
            with self.storage.open_input_stream(path) as file:
                return _looked_through(file, lines)
        if self.kind == SAVED:
            table = _saved(path)
            paths = sorted({Path(path) / name for name in _SAVED} | {Path(each["filename"]) for each in table.cache_files})
            digests = [_digest(self.storage, str(each)) for each in paths]
            rows, digest = len(table), hashlib.sha256("".join(digests).encode()).hexdigest()
        else:
            from pyarrow.parquet import ParquetFile

            with self.storage.open_input_file(path) as file:
                rows = ParquetFile(file).metadata.num_rows
            digest = _digest(self.storage, path)
        return {"lines": rows, "starts": list(range(0, rows, lines)), "size": rows, "digest": digest}

    def parts(self, looked: Mapping[str, Mapping[str, Any]], lines: int) -> list[Part]:
        """All parts, from what each file looks like. None goes over the end of a file."""
        parts: list[Part] = []
        first = 1
        for path in self.files:
            found = looked[path]
            for n, (start, end) in enumerate(pairwise([*found["starts"], found["size"]])):
                here = min(lines, found["lines"] - n * lines)
                parts.append(Part(len(parts), path, first + n * lines, here, start, end - start))
            first += found["lines"]
        return parts

    def items(self, part: Part) -> list[Item]:
        r"""
        What the lines of a part ask, as [`~hf_eft.programs.batch.read_items`] reads them.

        Raises:
            `ValueError`: If the file is not what it was when it was looked at.
        """
        items = self._of_lines(part) if self.kind in (TEXT, JSON) else self._of_rows(part)
        if len(items) != part.lines:
            raise ValueError(f"{part.path} was changed while it was read: expected {part.lines} lines, got {len(items)}.")
        return [replace(item, line=part.first + n) for n, item in enumerate(items)]

    def _of_lines(self, part: Part) -> list[Item]:
        with self.storage.open_input_file(part.path) as file:
            file.seek(part.start)
            data = file.read(part.length)
        # A mark of an encoding is one at the beginning of a file only: anywhere else it is part of a line, and a bad one.
        lines = text_lines(b"\n" + data)[1:] if part.start else text_lines(data)
        return [item_of_json(json_value(line)) if self.kind == JSON else item_of_text(line) for line in lines]

    def _of_rows(self, part: Part) -> list[Item]:
        if self.kind == SAVED:
            table = _saved(part.path).with_format("arrow")[part.start : part.start + part.length]
        else:
            from pyarrow.parquet import ParquetFile

            with self.storage.open_input_file(part.path) as file:
                table = _rows(ParquetFile(file), part.start, part.length)
        return [_item_of_row(row) for row in table.to_pylist()]


def find(where: str, as_json: bool | None = None) -> Input:
    r"""
    The files of an input.

    Args:
        where (`str`):
            A file, or a folder: of files of one kind, read in the order of their names, or of a data set that `save_to_disk` of datasets
            left. Local, or a URI that pyarrow knows (`s3://`, `gs://`, `hf://datasets/...`). The ending says what a file has:
            `.parquet`; `.jsonl`, `.ndjson`, `.json`; `.txt`.
        as_json (`bool`, *optional*): Whether lines are JSON. Without it, the ending decides, and then the first line that is not blank.

    Raises:
        `ValueError`: If there is nothing to read, files differ in kind, or lines cannot be read from the middle of a file.
    """
    import pyarrow.fs as arrow

    storage, path = storage_of(where)
    there = storage.get_file_info(path)
    if there.type == arrow.FileType.NotFound:
        raise ValueError(f"{where}: No such file or folder.")
    if there.type == arrow.FileType.File:
        files = [path]
    else:
        inside = storage.get_file_info(arrow.FileSelector(path, recursive=True))
        names = [each.path for each in inside if each.type == arrow.FileType.File]
        within = {os.path.relpath(name, path): name for name in names}
        if "dataset_dict.json" in within:
            splits = sorted({Path(name).parent.name for name in within if Path(name).name == "state.json"})
            raise ValueError(f"{where} has several data sets: give one of {', '.join(f'{where}/{split}' for split in splits)}.")
        if all(name in within for name in _SAVED):
            if not isinstance(storage, arrow.LocalFileSystem):
                raise ValueError(
                    f"{where} is a saved data set, which is read from a disk: copy it to one, or save it as Parquet."
                )
            return Input(storage, (path,), SAVED)
        files = sorted(name for short, name in within.items() if not any(step[0] in "._" for step in Path(short).parts))
    if not files:
        raise ValueError(f"there are no files in {where}")
    kinds = {_ENDINGS.get(Path(file).suffix.lower()) for file in files}
    if len(kinds) > 1:
        endings = sorted({Path(file).suffix or "none" for file in files})
        raise ValueError(f"{where} has files of several kinds, by their endings: {', '.join(endings)}. Expected one kind.")
    [kind] = kinds
    if kind == PARQUET:
        return Input(storage, tuple(files), PARQUET)
    if as_json is not None:
        kind = JSON if as_json else TEXT
    return Input(storage, tuple(files), _kind_of_lines(storage, files, kind))


def _kind_of_lines(storage: Any, files: list[str], kind: str | None) -> str:
    """Whether lines are JSON, where nobody says so: the first line that is not blank decides for all files."""
    for path in files:
        with storage.open_input_stream(path) as file:
            data = file.read(_HEAD)
        if data.startswith(_WIDE):
            raise ValueError(f"{path} is UTF-16 or UTF-32, of which no part can be read alone. Expected UTF-8.")
        lines = text_lines(data)
        if kind is None and not all(line.blank for line in lines):
            kind = JSON if looks_like_json(lines) else TEXT
        if kind == JSON and is_array(lines):
            raise ValueError(f"{path} is one JSON array, of which no part can be read alone. Expected an object in each line.")
    return kind or TEXT


def storage_of(where: str) -> tuple[Any, str]:
    """Where a place is, as a `pyarrow.fs.FileSystem`, and its path there."""
    import pyarrow.fs as arrow

    if "://" not in where:
        return arrow.LocalFileSystem(), str(Path(where).absolute())
    try:
        storage, path = arrow.FileSystem.from_uri(where)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where} cannot be reached: {error}") from error
    return storage, path


def _looked_through(file: Any, lines: int) -> dict[str, Any]:
    digest, starts, count, before, open_line, held = hashlib.sha256(), [0], 0, 0, False, b""
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        chunk, held = held + chunk, b""
        if chunk.endswith(b"\r"):  # the line may end in \r\n
            chunk, held = chunk[:-1], b"\r"
        count, open_line = _ends(chunk, before, lines, count, starts, open_line)
        before += len(chunk)
    count, open_line = _ends(held, before, lines, count, starts, open_line)
    size = before + len(held)
    if starts[-1] == size:
        starts.pop()
    return {"lines": count + open_line, "starts": starts, "size": size, "digest": digest.hexdigest()}


def _ends(chunk: bytes, before: int, lines: int, count: int, starts: list[int], open_line: bool) -> tuple[int, bool]:
    """The ends of lines in a piece of a file: how many there were, and whether a line is open behind them."""
    end = 0
    for match in _BREAK.finditer(chunk):
        count, end = count + 1, match.end()
        if count % lines == 0:
            starts.append(before + end)
    return count, end < len(chunk) or (open_line and not chunk)


def _digest(storage: Any, path: str) -> str:
    with storage.open_input_stream(path) as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _saved(path: str) -> Any:
    import datasets  # type: ignore[import-untyped]

    return datasets.load_from_disk(path)


def _rows(file: Any, start: int, length: int) -> Any:
    """Rows of a Parquet file, out of the groups that they are in."""
    groups: list[int] = []
    first = before = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if before < start + length and before + rows > start:
            first = before if not groups else first
            groups.append(group)
        before += rows
    return file.read_row_groups(groups).slice(start - first, length)


def _item_of_row(row: Mapping[str, Any]) -> Item:
    try:
        value = parsed(json.dumps(row))  # what JSON has not (dates, NaN) is refused as in a line
    except (TypeError, ValueError) as error:
        return Item(0, error=f"the row is no JSON: {error}")
    return item_of_json(Line(0, value))


def fingerprint_of(files: Iterable[str], looked: Mapping[str, Mapping[str, Any]]) -> str:
    """What tells one input from another, wherever it lies."""
    return hashlib.sha256("".join(looked[path]["digest"] for path in files).encode()).hexdigest()
