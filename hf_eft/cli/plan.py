"""`hf-eft plan`: what a combination will take, before anything is loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..planning import HERE, KNOWN, plan_of
from .app import FAILED, app, console, notes
from .models import Composition
from .options import named_numbers

_DTYPES = ("float32", "bfloat16", "float16")


@app.command()
def plan(
    base: Annotated[str | None, typer.Option(metavar="FOLDER_OR_ID", help="The large model.", show_default=False)] = None,
    tuned: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER_OR_ID", help="The tuned model, or an adapter's folder.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="FOLDER_OR_ID", help="What it was before.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="FOLDER_OR_ID", help="Instead, a saved combination.", show_default=False)
    ] = None,
    machine: Annotated[
        str, typer.Option(help=f"What it runs on: {HERE} (measured, in seconds), or {', '.join(KNOWN)}.")
    ] = HERE,
    devices: Annotated[int, typer.Option(min=1, help="How many of these.")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    prompt_length: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that follow.")] = 512,
    dtype: Annotated[
        str | None, typer.Option(help=f"{', '.join(_DTYPES)}; as the models say by default.", show_default=False)
    ] = None,
    bits: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER", help="Bits of a weight of a quantised member, as in --bits base=4.5.", show_default=False
        ),
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="How often the tuned model's token is the combination's.", show_default=False),
    ] = None,
    on_disk: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A member whose weights stay on disk, as in --on-disk base.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What will a combination take? Weights, states and time by member, the best block, and what does not fit. Exits with 1 then."""
    import torch

    from ..programs.planned import as_dict, table

    if dtype is not None and dtype not in _DTYPES:
        raise typer.BadParameter(f"expected one of {', '.join(_DTYPES)}, got {dtype!r}", param_hint="--dtype")
    composition = Composition(base, tuned, reference)
    if model is not None and composition.given:
        raise typer.BadParameter("give a saved combination or its members, not both", param_hint="--model")
    members = model if model is not None else composition.members()
    with notes.status("Measuring this machine" if machine == HERE else "Planning"):
        found = plan_of(
            members,
            machine,
            count=devices,
            rows=rows,
            prompt=prompt_length,
            new_tokens=max_new_tokens,
            dtype=getattr(torch, dtype) if dtype else None,
            bits=named_numbers(bits, "--bits"),
            on_disk=on_disk or (),
        )
        told = as_dict(found, agreement)
    if as_json:
        typer.echo(json.dumps(told, indent=1))
    else:
        console.print(table(told))
        for what, milliseconds in told["ms a token"].items():
            known = "not planned" if milliseconds is None else f"{milliseconds:,.3f} ms a token"
            console.print(f"{what}: {known}")
        console.print(f"At the peak {told['peak, GB']:,.3f} GB.")
        if "note" in told:
            console.print(told["note"])
        if not found.fits:
            console.print("That does not fit. What would: " + "; ".join(told["what would fit"]) + ".", style="bold")
    if not found.fits:
        raise typer.Exit(FAILED)
