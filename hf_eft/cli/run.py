"""Commands that run the models against the clock, or to be seen: bench, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from .app import app, console, notes
from .models import Models
from .options import with_groups


@app.command()
@with_groups
def bench(
    models: Models,
    prompt: Annotated[str | None, typer.Argument(help="What is continued; some text if left out.")] = None,
    input: Annotated[
        Path | None, typer.Option("--input", "-i", help="A file of prompts, one a line, for a batch.", show_default=False)
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens each run generates for a prompt.")] = 64,
    rounds: Annotated[int, typer.Option(min=2, help="How many times each is run, in turn.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tokens a second of each member alone, of the combination, and of speculation, on these models and this machine."""
    from ..programs.answer import Answerer, check_length
    from ..programs.batch import Item, read_items
    from ..programs.bench import bench as measure
    from ..programs.bench import distinct
    from ..prompts import padded

    if prompt is not None and input is not None:
        raise typer.BadParameter("give a prompt or --input, not both")
    items = (
        read_items(input.read_bytes(), as_json=False) if input else [Item(1, prompt=prompt or "Once upon a time, there was a")]
    )
    if bad := [item.line for item in items if item.error]:
        raise typer.BadParameter(f"line {bad[0]} of {input} is no prompt", param_hint="--input")
    model, tokenizer = models.load()
    answerer = Answerer(model, tokenizer, {"max_new_tokens": new_tokens})
    rows = [answerer.ids(item) for item in items]
    check_length(model, max(map(len, rows)), new_tokens)
    with Progress(console=notes, transient=True) as progress:
        runs = len(distinct(model)) + 1 + bool(model.combination.tuned_names)
        task = progress.add_task("Measuring", total=runs * (rounds + 1))
        measured = measure(
            model,
            padded(rows, answerer.pad()),
            new_tokens=new_tokens,
            rounds=rounds,
            done=lambda name: progress.update(task, advance=1, description=f"Measuring: {name}"),
        )
    if as_json:
        typer.echo(json.dumps(measured, indent=1))
    else:
        console.print(_table(measured))


def _table(measured: dict[str, Any]) -> Table:
    table = Table(
        title=f"{measured['recipe']}: {measured['batch']} x {measured['prompt_tokens']} tokens, then {measured['new_tokens']}",
        caption=f"{measured['rounds']} rounds in turn, greedy; medians, in brackets quartiles. {measured['device']}, {measured['dtype']}, "
        f"{measured['threads']} threads",
    )
    table.add_column("system", style="bold")
    for column in ("tokens/s", "speed over the combination", "speed over the base alone", "tokens a round"):
        table.add_column(column, justify="right")
    for name, system in measured["systems"].items():
        spreads = (system.get(key) for key in ("tokens_per_second", "over_combination", "over_base"))
        table.add_row(name, *map(_spread, spreads), str(system.get("tokens_per_round", "")))
    return table


def _spread(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = value["quartiles"]
    return f"{value['median']:.2f} ({low:.2f}-{high:.2f})"


@app.command()
def demo(
    questions: Annotated[int, typer.Option(min=1, help="How many held-out questions are shown.")] = 5,
    asked: Annotated[int, typer.Option(min=1, max=1200, help="How many are asked in all.")] = 120,
) -> None:
    """Ask the embedded family what fine-tuning never showed it: the small tuned model, the large base and the combination."""
    from ..programs.demo import run_demo

    run_demo(console, questions, max(questions, asked))
