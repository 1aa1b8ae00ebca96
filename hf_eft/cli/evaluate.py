"""`hf-eft eval`: base, tuned, reference and combined side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import check_folder
from ..prompts.pictures import tokenizer_of
from .app import app, console, notes, said
from .models import Models
from .options import with_groups


@app.command("eval")
@with_groups
def evaluate(
    models: Models,
    tuned_large: Annotated[
        str | None,
        typer.Option(metavar="FOLDER_OR_ID", help="A directly tuned large model, to say how much of the gap is recovered."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task of lm-evaluation-harness or of hf_eft.evaluation.tasks, or a task file (it may run code). May be repeated."
        ),
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="A JSONL file of your own questions. May be repeated.")] = None,
    metric: Annotated[
        str, typer.Option(help="For --data: exact_match, contains, regex, loglikelihood or choice.")
    ] = "contains",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="For --data: how much a model may write.")] = 64,
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first items of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Worked examples before each item.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the items in the tuned model's chat template.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="How many items are run together.")] = 8,
    output: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="A folder for results, as they come, and the picture. A run that was stopped goes on from there.",
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Measure anew what is in the output folder.")] = False,
    seed: Annotated[int, typer.Option(help="Of the examples, of sampling and of the intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if the combination is worse than a tuned model.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what lm-evaluation-harness logs.")] = False,
) -> None:
    """
    Is the combination better than its parts? Measures base, tuned, reference and combined on the same items, and warns where the
    combination is worse than the tuned model alone. Without models, the embedded tiny family is measured.
    """
    from .. import evaluation
    from ..evaluation import plots
    from ..evaluation.advice import advice
    from ..evaluation.custom_data import custom_task
    from ..evaluation.report import evaluation_plot, evaluation_table
    from ..evaluation.tasks import NAMES

    evaluation.check_installed()  # before models are loaded
    if not task and not data and (models.model or models.given):
        raise typer.BadParameter("say what to measure: --task or --data, each as often as you like", param_hint="--task")
    if output is not None:
        check_folder(output)
        with plots.style():  # the picture's package is there
            pass
    try:
        tasks: list[Any] = list(task or ([] if data else NAMES))
        tasks += [custom_task(file, metric, max_new_tokens=max_new_tokens) for file in data or ()]
        model, reader = models.load()
        tokenizer = tokenizer_of(reader)
        systems = evaluation.systems_of(model, _tuned_large(tuned_large, models.dtype, model.device))
        with _Bar(notes) as bar:
            found = evaluation.evaluate(
                systems, tokenizer, tasks, limit=limit, batch_size=batch_size, output=output, restart=restart, seed=seed,
                num_fewshot=num_fewshot, chat=chat, progress=bar, verbose=verbose,
            )  # fmt: skip
        if output is not None:
            evaluation_plot(found, output / "picture.png")
    except (ValueError, OSError, FloatingPointError) as error:
        raise typer.BadParameter(said(error)) from error
    if as_json:
        typer.echo(found.to_json(), nl=False)
    else:
        console.print(evaluation_table(found))
    warnings = found.warnings()
    for warning in warnings:
        notes.print(f"Warning: {warning}", style="bold red", markup=False, highlight=False)
    if warnings and (next_step := advice(model.combination)):
        notes.print(next_step, markup=False, highlight=False)
    if strict and warnings:
        raise typer.Exit(1)


def _tuned_large(where: str | None, dtype: str, device: Any) -> Any:
    if where is None:
        return None
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(where, dtype=dtype, use_safetensors=True).to(device)
    except (OSError, ValueError) as error:
        raise ValueError(f"the large tuned model cannot be loaded from {where}: {said(error)}") from error


class _Bar:
    """One bar for the system and task that is being measured; it goes when all is done."""

    def __init__(self, console: Any) -> None:
        from rich.progress import Progress

        self._progress = Progress(console=console, transient=True)
        self._bar: Any = None
        self._shown: tuple[str, str] | None = None

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, system: str, task: str, done: int, total: int) -> None:
        if self._shown != (system, task):
            if self._bar is not None:
                self._progress.remove_task(self._bar)
            self._bar, self._shown = self._progress.add_task(f"{task}: {system}", total=total), (system, task)
        self._progress.update(self._bar, completed=done, total=total)
