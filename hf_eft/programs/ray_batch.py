"""
A batch run on many machines: Ray Data hands the parts of an input to actors that hold the models, and gives what a lost one had to
another. Each actor writes the file of a part whole; that file is what makes a part done, once, whoever answered it and how often.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from .batch import Item, Stream, run_batches
from .parts import Input, Part, find, fingerprint_of
from .results_folder import ResultsFolder, part_name

LOCAL = "local"
_BLOCKS = 10_000  # more rows of work than this share a block, so that Ray's own books stay small
_STORE = 200 << 20  # bytes for what goes between processes: places of parts, and no text
_TRIES = 5  # of one part: a part that takes its process down each time must end

Answer = Callable[[Sequence[Item]], Sequence[Mapping[str, Any]]]
Load = Callable[[], tuple[Answer, Mapping[str, Any]]]


@dataclass(frozen=True)
class Actors:
    """
    The processes that hold the models.

    Args:
        address (`str`, *optional*, defaults to `"local"`): A cluster, as `ray.init` takes it; or Ray on this machine, for this run.
        count (`int`, *optional*, defaults to 1): How many there are. The run begins when the first of them can.
        gpus (`float`, *optional*, defaults to 0): How many GPUs each has.
    """

    address: str = LOCAL
    count: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Run:
    """
    What is answered, and what the answers depend on.

    Args:
        input (`str`): As [`~hf_eft.programs.parts.find`] takes it.
        output (`str`): The [`~hf_eft.programs.results_folder.ResultsFolder`].
        batch_size (`int`): How many lines run together.
        part_size (`int`): How many lines a part has, a multiple of `batch_size`.
        known (`Mapping[str, Any]`): What else the answers depend on, JSON-able, by the name a user knows it by.
        load (`Callable`): Pickled and called once in each actor: what answers items, and what tells its models from others.
        as_json (`bool`, *optional*): Whether lines are JSON; see `find`.
        restart (`bool`, *optional*, defaults to `False`): Whether to throw away what `output` has.
    """

    input: str
    output: str
    batch_size: int
    part_size: int
    known: Mapping[str, Any]
    load: Load
    as_json: bool | None = None
    restart: bool = False


@dataclass(frozen=True)
class Done:
    """How far a run is, in lines."""

    lines: int
    of: int
    errors: int
    kept: int  # of an earlier run


class Answering:
    """What an actor does with a part. It loads the models with the first one, and keeps them."""

    def __init__(self, source: Input, run: Run, identity: Mapping[str, Any]) -> None:
        self._source, self._run, self._identity = source, run, identity
        self._folder = ResultsFolder(run.output)
        self._answer: Answer | None = None

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """A table of parts, and what became of each."""
        return _told(lambda row: {"number": row["number"], "errors": self._answered(Part(**row))}, batch)

    def _answered(self, part: Part) -> int:
        if self._answer is None:
            answer, found = self._run.load()
            self._folder.agree(self._identity, found)
            self._answer = answer
        if self._folder.has(part_name(part.number)):  # its process died after writing and before saying so
            return self._folder.errors(part.number, part.first, part.lines)
        self._folder.try_once_more(part.number, _TRIES, f"lines {part.first} to {part.first + part.lines - 1}")
        written = io.BytesIO()
        sink = Stream(written)
        for _ in run_batches(self._source.items(part), sink, self._answer, self._run.batch_size):
            pass
        self._folder.write(part_name(part.number), written.getvalue())
        self._folder.forget_tries(part.number, _TRIES)
        return sink.errors


def run_on_ray(run: Run, actors: Actors) -> Iterator[Done]:
    r"""
    Answer what has no answer yet.

    Args:
        run ([`Run`]): What is answered.
        actors ([`Actors`]): Who answers.

    Returns:
        `Iterator[Done]`: How far it is, at the beginning and after each part.

    Raises:
        `ImportError`: If Ray is not installed.
        `ValueError`: If there is nothing to read, the output is of another run, or an actor cannot do its part.
    """
    if run.part_size % run.batch_size:
        raise ValueError(f"--part-size must be a multiple of --batch-size, {run.batch_size}, got {run.part_size}")
    ray = _ray()
    source, folder = find(run.input, run.as_json), ResultsFolder(run.output)
    known = {**run.known, "--input-format": source.kind, "--batch-size": run.batch_size, "--part-size": run.part_size}
    if not run.restart:
        folder.check(known)
    with _connected(ray, actors):
        looked = {
            row["path"]: row for row in _each(ray, [{"path": path} for path in source.files], _Looking(source, run.part_size))
        }
        parts = source.parts(looked, run.part_size)
        if not parts:
            raise ValueError(f"there are no lines in {run.input}")
        identity = {"the input": fingerprint_of(source.files, looked), **known}
        with folder.begin(identity, run.restart):
            yield from _answered(ray, run, actors, source, identity, parts, folder)


def _answered(
    ray: Any, run: Run, actors: Actors, source: Input, identity: Mapping[str, Any], parts: list[Part], folder: ResultsFolder
) -> Iterator[Done]:
    done = folder.done()
    if unknown := done - {part.number for part in parts}:
        raise ValueError(
            f"{run.output} has {part_name(min(unknown))}, but the input has {len(parts)} parts. Delete it, or --restart."
        )
    kept, todo = ([part for part in parts if (part.number in done) is there] for there in (True, False))
    lines, of, errors = sum(part.lines for part in kept), sum(part.lines for part in parts), 0
    for row in _each(ray, [asdict(part) for part in kept], _Checking(folder)):
        errors += row["errors"]
    yield Done(lines, of, errors, lines)
    if not todo:
        return
    sizes, before = {part.number: part.lines for part in todo}, lines
    work = _rows(ray, [asdict(part) for part in todo]).map_batches(
        Answering,
        fn_constructor_args=(source, run, identity),
        batch_size=1,
        batch_format="pyarrow",
        # A lost actor is started again as often as it is lost, and its work given out again: Ray Data does so if nothing else is said.
        # From one on: where a machine is lost, those that are idle at the end make room for the one that it had.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors.count, initial_size=actors.count),
        num_cpus=1,
        num_gpus=actors.gpus,
    )
    for row in _taken(ray, work):
        lines, errors = lines + sizes[row["number"]], errors + row["errors"]
        yield Done(lines, of, errors, before)


class _Looking:
    """What a file has."""

    def __init__(self, source: Input, lines: int) -> None:
        self.source, self.lines = source, lines

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"path": row["path"], **self.source.look(row["path"], self.lines)}


class _Checking:
    """Whether a part that is done has the results of its lines."""

    def __init__(self, folder: ResultsFolder) -> None:
        self.folder = folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"errors": self.folder.errors(row["number"], row["first"], row["lines"])}


def _each(ray: Any, rows: list[dict[str, Any]], what: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Something for each row, on any machine."""
    if rows:
        work = _rows(ray, rows).map_batches(partial(_told, what), batch_size=1, batch_format="pyarrow")
        yield from _taken(ray, work)


def _rows(ray: Any, rows: list[dict[str, Any]]) -> Any:
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))


def _told(what: Callable[[dict[str, Any]], dict[str, Any]], batch: Any) -> dict[str, list[str]]:
    """What comes of each row of a table, as JSON."""
    # Ray shows an exception as pages of its own: here it is a result, and the driver raises it.
    return {"told": [json.dumps(_tried(what, row)) for row in batch.to_pylist()]}


def _tried(what: Callable[[dict[str, Any]], dict[str, Any]], row: dict[str, Any]) -> dict[str, Any]:
    try:
        return what(row)
    except Exception as error:
        text = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
        return {"failed": text}


def _taken(ray: Any, work: Any) -> Iterator[dict[str, Any]]:
    """What comes of some work, as it comes."""
    try:
        for row in work.iter_rows():
            told = json.loads(row["told"])
            if "failed" in told:
                raise ValueError(told["failed"])
            yield told
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray gave up; start the run again to carry on. It said: {error}") from error


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("--ray needs Ray Data: pip install 'hf-eft[ray]'") from error
    return ray


@contextlib.contextmanager
def _connected(ray: Any, actors: Actors) -> Iterator[None]:
    """A cluster, for as long as the run takes."""
    if actors.address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of what starts on this machine
        # An actor takes one CPU: on a machine with fewer they share.
        options = {
            "num_cpus": max(os.cpu_count() or 1, actors.count),
            "object_store_memory": _STORE,
            "include_dashboard": False,
        }
    else:
        options = {}
    ray.init(actors.address, log_to_driver=False, logging_level=logging.ERROR, **options)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its steps are not those of the run
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False  # whoever iterates shows how far it is
        if (there := ray.cluster_resources().get("GPU", 0.0)) < actors.gpus:
            raise ValueError(f"--gpus-per-actor is {actors.gpus:g}, but all machines together have {there:g} GPUs.")
        yield
    finally:
        ray.shutdown()
