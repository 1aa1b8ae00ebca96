"""`hf-eft tune`: a small model learns through a large one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..files import check_folder
from .app import Failure, app, console, notes, said
from .models import best_device
from .options import option, with_groups

if TYPE_CHECKING:
    from ..training.record import Record
    from ..training.settings import Settings

_LEARNS, _STEPS, _RUNNING = "What is learnt", "How it is learnt", "How the models run"


@dataclass(frozen=True)
class Given:
    """The settings that a command line gives; what it does not give has a default of its own."""

    alpha: Annotated[float | None, option(_STEPS, "Strength of the delta in training: 0.5; without models 0.25.")] = None
    lora_r: Annotated[
        int | None, option(_STEPS, "Rank of a LoRA adapter on the reference. Without it, a copy of the reference learns.")
    ] = None
    epochs: Annotated[float | None, option(_STEPS, "How often each answer is shown: 3.")] = None
    steps: Annotated[int | None, option(_STEPS, "How many times the weights are changed, instead of --epochs.")] = None
    batch_size: Annotated[int | None, option(_STEPS, "Examples that are read together: 8.")] = None
    accumulation: Annotated[int | None, option(_STEPS, "How many such batches are one step: 1.")] = None
    learning_rate: Annotated[float | None, option(_STEPS, "The highest: 2e-4 for LoRA, 2e-5 for all weights.")] = None
    max_length: Annotated[int | None, option(_STEPS, "The most tokens that an example may have: 1024.")] = None
    replay_share: Annotated[float | None, option(_STEPS, "The share of --replay in each step: 0.5.")] = None
    evaluations: Annotated[
        int | None, option(_STEPS, "How often the held-out part is looked at, and a checkpoint kept: 8.")
    ] = None
    patience: Annotated[int | None, option(_STEPS, "Looks without a lower held-out loss before it stops: 3; 0 for never.")] = (
        None
    )
    gradient_checkpointing: Annotated[
        bool, option(_STEPS, "Less memory for the small model, more time.", flag="--gradient-checkpointing")
    ] = False
    seed: Annotated[int | None, option(_STEPS, "Of the order and of what is held out: 0.")] = None

    def settings(self, embedded: bool) -> Settings:
        """The settings; those of the embedded family where there are no models."""
        from ..training.embedded import embedded_settings
        from ..training.settings import Settings

        given = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        try:
            return embedded_settings(**given) if embedded else Settings(**given)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error


@app.command()
@with_groups
def tune(
    given: Given,
    output: Annotated[
        Path, typer.Option("--output", "-o", file_okay=False, help="The folder of the delta. A run that was stopped goes on.")
    ],
    base: Annotated[
        list[str] | None,
        option(
            _LEARNS, "The model that is learnt through. Several times: one is drawn for each batch.", metavar="FOLDER_OR_ID"
        ),
    ] = None,
    reference: Annotated[
        str | None, option(_LEARNS, "The small model that the delta begins as.", metavar="FOLDER_OR_ID")
    ] = None,
    data: Annotated[
        Path | None,
        option(_LEARNS, "JSON Lines with `messages`, or `prompt` and `answer`.", exists=True, dir_okay=False),
    ] = None,
    chat: Annotated[bool, option(_LEARNS, "A `prompt` is what a user says, in the chat template.", flag="--chat")] = False,
    held_out: Annotated[
        str | None,
        option(_LEARNS, "What is measured and never learnt: a share (0.05), or a file as --data.", metavar="SHARE_OR_FILE"),
    ] = None,
    replay: Annotated[
        Path | None,
        option(_LEARNS, "Documents as in pre-training, a line each, beside the answers.", exists=True, dir_okay=False),
    ] = None,
    combination: Annotated[
        Path | None,
        option(_LEARNS, "Also write base, delta and reference as one folder, for --model.", file_okay=False),
    ] = None,
    dtype: Annotated[
        str, option(_RUNNING, "Of the base: auto, float32, bfloat16 or float16. What learns is in float32.")
    ] = "auto",
    device: Annotated[str | None, option(_RUNNING, "Where the models run. The fastest there is by default.")] = None,
    trust_remote_code: Annotated[
        bool, option(_RUNNING, "Run the code that the models' repositories bring.", flag="--trust-remote-code")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew what is in the output folder.")] = False,
) -> None:
    """
    Have a small model learn through a large one, which stays as it is: a delta for that base. Without models, the embedded family learns
    in some minutes.
    """
    from ..evaluation import plots
    from ..training.tuning import check_installed

    check_installed(lora=given.lora_r is not None)  # before models are loaded
    with plots.style():  # the picture's package is there
        pass
    from ..programs.tuning import Request, run_tuning

    request = Request(
        bases=tuple(base or ()), reference=reference, data=data, chat=chat, held_out=held_out, replay=replay, output=output,
        combination=combination, dtype=dtype, device=device or best_device(), trust_remote_code=trust_remote_code, restart=restart,
    )  # fmt: skip
    if missing := request.missing():
        raise typer.BadParameter(f"{' and '.join(missing)} missing; or leave all models and files out, for the embedded family")
    for folder in (output, *([combination] if combination else [])):
        check_folder(folder)
    settings = given.settings(not request.given)
    if not request.given:
        notes.print("No models given: the embedded tiny family learns (it knows one invented world).", style="dim")
    with Progress(*_columns(), console=notes, transient=True) as progress:
        task = progress.add_task("Loading", total=None, told="")

        def tell(step: int, total: int, told: str) -> None:
            progress.update(task, description="Learning", completed=step, total=total, told=told)

        try:
            record = run_tuning(request, settings, tell)
        except (ValueError, OSError) as error:
            raise typer.BadParameter(said(error)) from error
        except MemoryError as error:
            raise Failure(str(error)) from error
    console.print(_table(record))
    console.print(
        f"{output}: a delta for strength {record.recommended:g}, {_by(record)}. Use it as [bold]--tuned {output}[/bold]; "
        "alone it is no model.",
        soft_wrap=True,
        highlight=False,
    )


def _columns() -> Sequence[Any]:
    return (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}"), TimeRemainingColumn(),
            TextColumn("{task.fields[told]}"))  # fmt: skip


def _by(record: Record) -> str:
    tried = [each["alpha"] for each in record.strengths]
    best = "the largest that was tried: try more" if record.recommended == max(tried) else "the best of those that were tried"
    return f"{best} ({', '.join(f'{each:g}' for each in tried)})"


def _table(record: Record) -> Table:
    """The held-out loss as it went, and what became of an answer."""
    table = Table(title=f"Held out: {record.asked[0]['prompt'].splitlines()[0] if record.asked else 'losses'}")
    table.add_column("step", justify="right")
    table.add_column("held-out loss", justify="right")
    table.add_column("answer", ratio=1)
    for look in record.held_out:
        table.add_row(f"{look['step']}", f"{look['loss']:.4f}", (look["answers"] or [""])[0])
    return table
