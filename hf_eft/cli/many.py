"""Batch runs on many machines, the options of `hf-eft generate --ray`; and how far any batch run is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..programs.ray_batch import LOCAL, Actors, Run, run_on_ray
from .app import SOME_FAILED, notes
from .options import option

_MANY = "Many machines"
_BATCHES = 16  # of one part, if nobody says how many lines it has


class RayCommand(TyperCommand):
    """A command whose `--ray` may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the command line has them, with the address that is left out."""
        followed = zip(args, [*args[1:], "--"], strict=True)
        return super().parse_args(
            ctx, [f"--ray={LOCAL}" if arg == "--ray" and after.startswith("-") else arg for arg, after in followed]
        )


@dataclass(frozen=True)
class Many:
    """Who answers a batch run, where it is not this process."""

    ray: Annotated[
        str | None,
        option(
            _MANY,
            "Let actors of Ray answer a batch run: of the cluster at an address (HOST:PORT, or auto for the one of this machine), or, "
            "without one, on this machine. Needs the extra ray.",
            flag="--ray",
            metavar="[ADDRESS]",
        ),
    ] = None
    actors: Annotated[int, option(_MANY, "How many processes hold the models.", show_default=True, min=1)] = 1
    gpus_per_actor: Annotated[float, option(_MANY, "How many GPUs each of them has.", show_default=True, min=0.0)] = 0.0
    part_size: Annotated[
        int | None,
        option(
            _MANY,
            f"How many lines one file of results has, what a lost machine loses at most: {_BATCHES} batches. A multiple of --batch-size.",
            min=1,
        ),
    ] = None

    def check_unused(self) -> None:
        """Raise if anything is given that needs `--ray`."""
        for name, value in vars(Many()).items():
            if getattr(self, name) != value:
                raise typer.BadParameter("this is an option of a run with --ray", param_hint=f"--{name.replace('_', '-')}")

    def run(
        self,
        source: str,
        output: str | None,
        known: Mapping[str, Any],
        load: Callable[[], Any],
        batch_size: int,
        as_json: bool | None,
        restart: bool,
    ) -> None:
        """Answer all lines of an input."""
        if source == "-":
            raise typer.BadParameter("with --ray every machine reads its part of a file: give one", param_hint="--input")
        if output is None:
            raise typer.BadParameter("with --ray results go to a folder: give one", param_hint="--output")
        run = Run(source, output, batch_size, self.part_size or _BATCHES * batch_size, known, load, as_json, restart)
        try:
            with notes.status("Looking through the input"):
                done = run_on_ray(run, Actors(str(self.ray), self.actors, self.gpus_per_actor))
                now = next(done)
            if now.kept:
                notes.print(f"{output} has {now.kept} of {now.of} results: carrying on.", style="dim", soft_wrap=True)

            def steps() -> Iterable[tuple[int, int]]:
                nonlocal now
                for now in done:
                    yield now.lines, now.errors

            show_progress(steps(), now.lines, now.of)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        say_failed(now.errors, now.of)


def show_progress(steps: Iterable[tuple[int, int]], done: int, of: int) -> None:
    """Show how many lines are done, and how many of them could not be answered, as it goes on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("Answering", total=of, completed=done)
        for lines, errors in steps:
            progress.update(task, completed=lines, description=f"Answering, {errors} not" if errors else "Answering")


def say_failed(errors: int, of: int) -> None:
    """End the command with its exit code, if lines could not be answered."""
    if errors:
        notes.print(f'{errors} of {of} lines could not be answered: they have an "error".', soft_wrap=True)
        raise typer.Exit(SOME_FAILED)
