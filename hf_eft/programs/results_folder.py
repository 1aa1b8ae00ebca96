"""A folder of results, a file for each part of an input: it is the state of a run on many machines. Knows no model, and not who writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import check_folder, replacing
from .batch import check_identity, lock
from .parts import storage_of

_RUN, _MODELS, _LOCK = "run.json", "models-{}.json", ".lock"
_TRY = "try-{:08d}-{}"  # that a process began a part, and has not ended it
_OURS = re.compile(r"run\.json|models-[0-9a-f]+\.json|part-\d+\.jsonl|try-\d+-\d+|[^/]*\.partial")
_LEFT = re.compile(r"try-\d+-\d+|[^/]*\.partial")  # by a run that was stopped
_PART = re.compile(r"part-(\d+)\.jsonl")


def part_name(number: int) -> str:
    """The file of a part's results. In the order of these names, files have the lines of the input in order."""
    return f"part-{number:08d}.jsonl"


class ResultsFolder:
    r"""
    The folder of results of a run that many processes write. A file is there whole or not at all, and has the name of its part, so that a
    part that is answered twice is there once. What the run was, stands in `run.json`; what models answered, in `models-*.json`.

    Args:
        where (`str`): A local folder, which all machines see under this path, or a URI of an object store that pyarrow knows.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.storage, self.path = storage_of(where)

    # The files ----------------------------------------------------------------------------------------------------------

    @property
    def local(self) -> Path | None:
        """As a path, where it is one."""
        import pyarrow.fs as arrow

        return Path(self.path) if isinstance(self.storage, arrow.LocalFileSystem) else None

    def names(self) -> set[str]:
        """The files that a run has written."""
        import pyarrow.fs as arrow

        inside = self.storage.get_file_info(arrow.FileSelector(self.path, allow_not_found=True))
        return {each.base_name for each in inside if each.type == arrow.FileType.File and each.base_name != _LOCK}

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        import pyarrow.fs as arrow

        return bool(self.storage.get_file_info(f"{self.path}/{name}").type == arrow.FileType.File)

    def read(self, name: str) -> bytes:
        """All of a file."""
        with self.storage.open_input_stream(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all. An object store shows what is written when all of it is there."""
        if (folder := self.local) is not None:
            with replacing(folder / name) as (partial,):
                partial.write_bytes(data)
            return
        with self.storage.open_output_stream(f"{self.path}/{name}") as file:
            file.write(data)

    def _delete(self, names: set[str]) -> None:
        for name in sorted(names):
            self.storage.delete_file(f"{self.path}/{name}")

    # The run ------------------------------------------------------------------------------------------------------------

    def check(self, known: Mapping[str, Any]) -> None:
        r"""
        Raise if the folder is of another run, or of none, as far as that can be told from what is `known` of the run's identity.

        Raises:
            `ValueError`: Saying what differs, or that it cannot be written to.
        """
        if (folder := self.local) is not None:
            check_folder(folder)
        names = self.names()
        if _RUN not in names:
            if names:
                raise ValueError(
                    f"{self.where} has files, but no {_RUN}, which says what run they are of. Choose another folder, or an empty one."
                )
            return
        before = self._json(_RUN)
        check_identity(self.where, before, json.loads(json.dumps(known)), known)

    @contextlib.contextmanager
    def begin(self, identity: Mapping[str, Any], restart: bool = False) -> Iterator[None]:
        r"""
        Take the folder for a run, until the context is left. Where it is there already, the run carries on.

        Args:
            identity (`Mapping[str, Any]`): Everything that results depend on but the models, JSON-able, by the name a user knows it by.
            restart (`bool`, *optional*, defaults to `False`): Whether to throw away what a run has left there; other files stay.

        Raises:
            `ValueError`: If it is of another run, or another process is running one there.
        """
        if not restart:
            self.check(identity)
        self.storage.create_dir(self.path, recursive=True)
        with contextlib.ExitStack() as held:
            if (folder := self.local) is not None:
                lock(held.enter_context((folder / _LOCK).open("ab")), folder)
            ours = {name for name in self.names() if _OURS.fullmatch(name)}
            self._delete(ours if restart else {name for name in ours if _LEFT.fullmatch(name)})
            if restart or _RUN not in ours:
                text = json.dumps({"of": "a run of hf-eft on Ray, which carries on from here", **identity}, indent=1)
                self.write(_RUN, text.encode())
            yield

    def agree(self, identity: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        r"""
        Raise if this machine does not see the run's folder, or has other models than those that have answered.

        Args:
            identity (`Mapping[str, Any]`): The run's, as `begin` has it.
            found (`Mapping[str, Any]`): What tells these models from others.

        Raises:
            `ValueError`: Saying what differs.
        """
        if _RUN not in self.names():
            raise ValueError(
                f"This machine does not see the run's {_RUN} in {self.where}: the output must be a folder that all machines share."
            )
        self.check(identity)
        text = json.dumps(found, indent=1, sort_keys=True)
        own = _MODELS.format(hashlib.sha256(text.encode()).hexdigest()[:16])
        # Each writes first and looks then, so that of two that differ one sees the other.
        self.write(own, text.encode())
        others = {name for name in self.names() if re.fullmatch(_MODELS.format("[0-9a-f]+"), name)} - {own}
        if others:
            self._delete({own})
            check_identity(self.where, self._json(min(others)), json.loads(text), found)

    def try_once_more(self, number: int, most: int, what: str) -> None:
        r"""
        Note that a process begins a part.

        Raises:
            `ValueError`: If so many have begun it in this run, and none has ended it: it would go on without end.
        """
        for tried in range(most):
            if not self.has(name := _TRY.format(number, tried)):
                self.write(name, b"")
                return
        raise ValueError(
            f"{most} processes that answered {what} died before the end. If not the machines are at fault, these lines are: a smaller "
            "--batch-size needs less memory."
        )

    def forget_tries(self, number: int, most: int) -> None:
        """Note that a part was ended."""
        self._delete({name for tried in range(most) if self.has(name := _TRY.format(number, tried))})

    def done(self) -> set[int]:
        """The parts that have results."""
        return {int(match[1]) for name in self.names() if (match := _PART.fullmatch(name))}

    def errors(self, number: int, first: int, lines: int) -> int:
        r"""
        How many lines of a part that is done have an error.

        Raises:
            `ValueError`: If its file has not the results of exactly these lines.
        """
        name = part_name(number)
        with contextlib.suppress(ValueError, RecursionError):
            results = [json.loads(line) for line in self.read(name).splitlines()]
            found = [result.get("line") if isinstance(result, dict) else None for result in results]
            if found == list(range(first, first + lines)):
                return sum("error" in result for result in results)
        raise ValueError(
            f"{self.where}/{name} has not the results of lines {first} to {first + lines - 1}: it was changed. Delete it, and its part is "
            "answered again, or throw everything away with --restart."
        )

    def _json(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(self.read(name))
            if isinstance(value, dict):
                return {name: each for name, each in value.items() if name != "of"}
        raise ValueError(f"{self.where}/{name} cannot be read as what a run has written. Choose another folder, or --restart.")
