"""Commands that make what is published: a folder of a combination, its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files import check_file, check_folder
from ..files import write as write_file
from ..recipe.combination import BASE, REFERENCE, TUNED
from .app import app, notes
from .models import Composition, Models
from .options import named, with_groups


@app.command()
@with_groups
def compose(
    composition: Composition,
    folder: Annotated[Path, typer.Argument(help="Where to: a new or empty folder.")],
    references: Annotated[
        bool,
        typer.Option("--references", help="Write a recipe of a few kB that refers to the members by repository and commit."),
    ] = False,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            help="For members with different tokenizers: tokens, bytes or, without --references, auto.",
            metavar="tokens|bytes|auto",
        ),
    ] = None,
    revision: Annotated[
        list[str] | None,
        typer.Option(help="The revision of a member's repository, as in --revision base=v1.0.", metavar="NAME=REVISION"),
    ] = None,
) -> None:
    """Make one folder of a base, a tuned and a reference model: with their weights, or a recipe that refers to them."""
    from ..hub import compose as write

    check_folder(folder)  # before models are loaded
    members = composition.members()
    with notes.status("Loading") as status:
        made = write(
            members,
            folder,
            combination=composition.recipe_for(members),
            vocabulary=vocabulary,
            references=references,
            revisions=named(revision, "--revision") or None,
            progress=status.update,
        )
    typer.echo(made)


@app.command()
@with_groups
def card(
    models: Models,
    snippet: Annotated[
        bool,
        typer.Option("--snippet", help="Instead, a part for the card of the small tuned model; looks at no weights."),
    ] = False,
    repo_id: Annotated[
        str | None, typer.Option(help="Where the combination will be published, as in me/my-combination.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file to write; the standard output if left out.", show_default=False),
    ] = None,
) -> None:
    """Write a model card for the combination, or a snippet that says how to up-scale with a tuned model."""
    if output is not None:
        check_file(output, new=True)  # before models are loaded
    if snippet:
        from ..folders.card import snippet as write_snippet

        places = models.places()
        if not isinstance(places, dict) or TUNED not in places or REFERENCE not in places or not models.tuned:
            raise typer.BadParameter("a snippet needs the repositories: --tuned and --reference, and --base if you like")
        text = write_snippet(places[TUNED], places[REFERENCE], base=places.get(BASE))
    else:
        from ..folders.card import model_card

        text = model_card(models.load_all()[0], repo_id=repo_id)
    if output is None:
        typer.echo(text)
    else:
        write_file(output, text, new=True)
