"""Commands that look: do models go together, and what did the delta do?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .app import FAILED, app, console, notes


@app.command()
def check(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Folder or Hub id.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="Folder or Hub id.")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="Folder or Hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Do these models go together? Looks at configurations and tokenizers; loads no weights. Exits with 1 if something is refused."""
    from dataclasses import asdict

    from ..compatibility import check_members
    from ..report import findings_table

    with notes.status("Reading configurations and tokenizers"):
        findings = check_members({"base": base, "tuned": tuned, "reference": reference})
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        console.print(findings_table(findings))
    if any(finding.level == "refused" for finding in findings):
        raise typer.Exit(FAILED)
