"""Commands that look: do models go together, and what did the delta do?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..files import check_file, write
from .app import FAILED, app, console, notes
from .generate import Prompted, one_prompt
from .models import Models, check_vocabulary
from .options import with_groups


@app.command()
def check(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Folder or Hub id.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Folder or Hub id.")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="Folder or Hub id.")],
    vocabulary: Annotated[
        str | None,
        typer.Option(
            help="For members with different tokenizers, how they are to be combined: tokens, bytes or auto.",
            metavar="tokens|bytes|auto",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Do these models go together? Looks at configurations and tokenizers; loads no weights. Exits with 1 if something is refused."""
    from dataclasses import asdict

    from ..hub.compatibility import check_members
    from ..programs.report import findings_table

    check_vocabulary(vocabulary)
    with notes.status("Reading configurations and tokenizers"):
        findings = check_members({"base": base, "tuned": tuned, "reference": reference}, vocabulary)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        console.print(findings_table(findings))
    if any(finding.level == "refused" for finding in findings):
        raise typer.Exit(FAILED)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Any option of `generate` may follow, for a continuation that is generated.",
)
@with_groups
def inspect(
    context: typer.Context,
    models: Models,
    asking: Prompted,
    prompt: Annotated[str | None, typer.Argument(help="What is continued. Read from the standard input if left out.")] = None,
    continuation: Annotated[
        str | None, typer.Option(help="The text that is looked at; generated if left out.", show_default=False)
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the heat-map to this file.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records and their summary as JSON.")] = False,
) -> None:
    """What did the delta do to each token of a continuation?"""
    from ..analysis import analyse
    from ..programs.report import analysis_table

    text, options = one_prompt(prompt, context.args)
    if continuation is not None and options:
        raise typer.BadParameter(f"options of `generate` are for a continuation that is generated, got {options}")
    if html is not None:
        check_file(html)  # before models are loaded
    answerer = asking.answerer(models, options)
    with notes.status("Looking"):
        given = answerer.options if continuation is None else {}
        analysis = analyse(
            answerer.model, answerer.tokenizer, continuation=continuation, **answerer.given(asking.item(text)), **given
        )
    if html is not None:
        from transformers.image_utils import load_image

        from ..analysis.heatmap import page

        write(html, page([analysis], images=[load_image(str(path)) for path in asking.image or ()]))
        notes.print(f"The page is {html}.", style="dim", soft_wrap=True)
    if as_json:
        records = [record.to_dict() for record in analysis.records]
        typer.echo(json.dumps({"summary": analysis.summary(), "records": records}, ensure_ascii=False, indent=1))
    elif html is None:
        console.print(analysis_table(analysis))
