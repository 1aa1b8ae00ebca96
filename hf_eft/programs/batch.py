"""Batch runs: prompts from lines, results to lines, and a run that was killed carries on to the same file. Knows no model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ..files import check_file, load_json, write
from ..files.json_lines import Line, json_lines, looks_like_json, shown, text_lines, without_nulls
from ..prompts.messages import read_messages, read_text

RECIPE_FIELDS = ("alpha", "beta", "weights")
PROMPT_FIELDS = ("prompt", "messages")


@dataclass(frozen=True)
class Item:
    """A line of the input: what is to be answered, or why it cannot be."""

    line: int  # from 1
    id: Any = None
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)  # alpha, beta or weights of this line
    options: Mapping[str, Any] = field(default_factory=dict)  # of `generate`, and `seed`
    error: str | None = None
    images: tuple[Any, ...] = ()  # shown with `prompt`, where that is what a user says


def read_items(data: bytes, as_json: bool | None = None) -> list[Item]:
    r"""
    The lines of an input.

    Args:
        data (`bytes`):
            UTF-8, or UTF-16 or UTF-32 where a byte order mark says so. Lines end in `\n`, `\r\n` or `\r`; the last one need not.
        as_json (`bool`, *optional*):
            Whether a line is a JSON object with `prompt` or `messages`, and optionally `id`, `alpha`, `beta`, `weights`, `seed` and
            options of `generate`; or else a prompt. Without it, the first line that is not blank decides. One JSON array of such
            objects is read as its elements. In all of them, null is absent.

    Returns:
        `list[Item]`: One for each line, or element; one that cannot be read has an `error`.

    Raises:
        `ValueError`: If the data is not in the encoding that its mark names, or begins as an array of objects and is none.

    Example:

    ```python
    >>> from hf_eft.programs.batch import read_items

    >>> [item.prompt for item in read_items(b"one\ntwo\n")]
    ['one', 'two']
    >>> read_items(b'{"prompt": "one", "alpha": 0.5}\n{"prompt": 1}\n')[1].error
    '`prompt` must be a text, got 1'
    ```
    """
    lines = text_lines(data)
    if as_json is None:
        as_json = looks_like_json(lines)
    if as_json:
        return [item_of_json(line) for line in json_lines(data)]
    return [item_of_text(line) for line in lines]


def item_of_text(line: Line) -> Item:
    """A line that is a prompt."""
    if line.error or line.blank:
        return Item(line.number, error=line.error or "the prompt is empty")
    return Item(line.number, prompt=line.value)


def item_of_json(line: Line) -> Item:
    """A value that was read from JSON, which must be an object with what is asked."""
    if line.error:
        return Item(line.number, error=line.error)
    if not isinstance(line.value, dict):
        return Item(line.number, error=f"the line is no JSON object but {shown(line.value)}")
    given = without_nulls(line.value)
    item_id = given.pop("id", None)
    try:
        prompt, messages = _asked(given)
    except ValueError as error:
        return Item(line.number, item_id, error=str(error))
    recipe = {name: given.pop(name) for name in RECIPE_FIELDS if name in given}
    if isinstance(weights := recipe.get("weights"), dict):
        recipe["weights"] = without_nulls(weights)
        recipe = {name: value for name, value in recipe.items() if value != {}}  # no weights are none
    return Item(line.number, item_id, prompt, messages, recipe, given)


def _asked(given: dict[str, Any]) -> tuple[str | None, tuple[Mapping[str, Any], ...] | None]:
    """What a line asks, taken out of it: a prompt or messages."""
    if len(there := [f"`{name}`" for name in PROMPT_FIELDS if name in given]) != 1:
        raise ValueError(f"expected either `prompt` or `messages`, got {' and '.join(there) or 'neither'}")
    if "messages" in given:
        return None, tuple(read_messages(given.pop("messages"), pictures=True))
    prompt = read_text(given.pop("prompt"), "`prompt`")
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return prompt, None


def encoded(result: Mapping[str, Any]) -> bytes:
    """A result as a line."""
    try:
        return (json.dumps(result, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        return (json.dumps(result) + "\n").encode()


def check_results(path: Path, known: Mapping[str, Any], restart: bool = False) -> None:
    r"""
    Raise if a file cannot take the results of a run, as far as that can be told before models are loaded. Changes nothing.

    Args:
        path (`Path`): The file of [`Results`].
        known (`Mapping[str, Any]`): What is known of the run's identity.
        restart (`bool`, *optional*, defaults to `False`): Whether what is there is to be thrown away.

    Raises:
        `ValueError`: If it cannot be written, or is of another run.
    """
    check_file(path)
    if not restart and path.exists() and path.stat().st_size:
        check_identity(path, _described(path), json.loads(json.dumps(known)), known)


def _meta(path: Path) -> Path:
    return path.with_name(path.name + ".meta.json")


def _described(path: Path) -> dict[str, Any]:
    """What stands beside results about their run."""
    with contextlib.suppress(OSError, ValueError):
        before = load_json(_meta(path))
        if isinstance(before, dict):
            return {name: value for name, value in before.items() if name != "of"}
    raise ValueError(
        f"{path} is there, but {_meta(path).name}, which says what run it is of, cannot be read. Choose another file, or throw it away "
        "with --restart."
    )


def check_identity(path: Path | str, before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise if results are of a run whose identity differs in one of some names."""
    changed = [
        f"{name} was {shown(before.get(name))} and is {shown(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} is of another run: {'; '.join(changed)}. Choose another output, run it as before, or throw it away with --restart."
        )


class Sink(Protocol):
    """Where results go."""

    kept: int  # results that are there
    errors: int  # lines that could not be answered, those included

    def append(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Take the next results."""


class Stream:
    """Results to a stream, which cannot be resumed."""

    def __init__(self, stream: BinaryIO) -> None:
        self.kept = self.errors = 0
        self._stream = stream

    def append(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Write the next results."""
        self._stream.write(b"".join(map(encoded, results)))
        self._stream.flush()
        self.kept += len(results)
        self.errors += sum("error" in result for result in results)


class Results:
    r"""
    The file of results. It is the state of the run: its complete lines are done. What the run was, stands beside it in
    `<name>.meta.json`, so that a run with another input or other options does not carry on with it.

    Args:
        path (`str` or `Path`): The file, a JSON object in a line for each line of the input, in order.
        identity (`Mapping[str, Any]`): Everything that the results depend on, JSON-able, by the name a user knows it by.
        restart (`bool`, *optional*, defaults to `False`): Whether to throw away what is there.

    Raises:
        `ValueError`: If the file is not of this run, is damaged, or another process is writing it.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], restart: bool = False) -> None:
        self.path = Path(path)
        self.meta = _meta(self.path)
        self._identity = json.loads(json.dumps(identity))
        # Not buffered: what a full disk did not take must not be written when the file is closed.
        self._file = self.path.open("ab", buffering=0)
        try:
            lock(self._file, self.path)
            if restart:
                self._file.truncate(0)
                self.meta.unlink(missing_ok=True)
            self.kept, self.errors = self._resume()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def append(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Write the next results, to the disk: all of them, or none."""
        end, left = self._file.seek(0, os.SEEK_END), memoryview(b"".join(map(encoded, results)))
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):  # if even that fails, the next run cuts it off
                self._file.truncate(end)
            raise
        self.kept += len(results)
        self.errors += sum("error" in result for result in results)

    def _resume(self) -> tuple[int, int]:
        data = self.path.read_bytes()
        if not data:
            self._describe()
            return 0, 0
        before = _described(self.path)
        check_identity(self.path, before, self._identity, {**self._identity, **before})
        complete = data[: data.rfind(b"\n") + 1]
        done = [self._parsed(number, line) for number, line in enumerate(complete.split(b"\n")[:-1], start=1)]
        self._file.truncate(len(complete))  # what was cut off in the middle of a line is written anew
        return len(done), sum("error" in result for result in done)

    def _describe(self) -> None:
        """Say what the run is, before there is a result."""
        write(self.meta, json.dumps({"of": "a batch run of hf-eft, which carries on from here", **self._identity}, indent=1))

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            result = json.loads(line)
            if isinstance(result, dict) and result.get("line") == number:
                return result
        raise ValueError(
            f"Line {number} of {self.path} is not the result of line {number} of the input: the file was changed. Choose another file, or "
            "throw it away with --restart."
        )


def lock(file: BinaryIO, path: Path) -> None:
    """Two runs that write one file would double its lines. The lock goes with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"Another process is writing {path}. Wait for it, or choose another file.") from None


def run_batches(
    items: Sequence[Item],
    results: Sink,
    answer: Callable[[Sequence[Item]], Sequence[Mapping[str, Any]]],
    batch_size: int,
) -> Iterator[int]:
    r"""
    Answer the items that have no result yet, batch by batch.

    A batch is always the same lines of the input: where a run was cut in the middle of one, all of it is answered again and what was
    missing is appended. (Logits depend on what else is in a batch in their last digits, which can decide a tie.)

    Args:
        items (`Sequence[Item]`): All of them, in order.
        results ([`Results`] or [`Stream`]): Where results go, and how many are there.
        answer (`Callable`): A result, or an `"error"`, for each of some items that can be answered.
        batch_size (`int`): How many lines are a batch.

    Returns:
        `Iterator[int]`: How many lines are done, after each batch.
    """
    first = len(items) if results.kept >= len(items) else results.kept // batch_size * batch_size
    for start in range(first, len(items), batch_size):
        batch = items[start : start + batch_size]
        readable = [item for item in batch if item.error is None]
        answers = iter(answer(readable) if readable else ())
        lines = [_line(item, next(answers) if item.error is None else {"error": item.error}) for item in batch]
        results.append(lines[max(0, results.kept - start) :])
        yield start + len(batch)


def _line(item: Item, answer: Mapping[str, Any]) -> dict[str, Any]:
    return {"line": item.line, **({} if item.id is None else {"id": item.id}), **answer}


def fingerprint(data: bytes) -> str:
    """What tells one input from another."""
    return hashlib.sha256(data).hexdigest()
