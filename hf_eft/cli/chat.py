"""`hf-eft chat`: talk in a terminal, and change who answers while talking."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..files.json_lines import whole_text
from ..programs.conversation import COMBINED, COMMANDS, ChatSession
from .app import app, console, said, say_error
from .models import Models
from .options import generation_options, with_groups

_COLOURS = {"base": "blue", COMBINED: "green"}
_PROMPT = "you > "


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Any option of `generate` may follow, as in: --temperature 0.7. While talking: "
    + "; ".join(f"{name} {text}" for name, text in COMMANDS.items()),
)
@with_groups
def chat(
    context: typer.Context,
    models: Models,
    system: Annotated[str | None, typer.Option(help="A system message.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens a reply may have.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Seed for sampling.", show_default=False)] = None,
) -> None:
    """Talk to the combination, and change its recipe while talking. Ctrl-C stops a reply, Ctrl-D leaves."""
    options, positional = generation_options(context.args)
    if positional:
        raise typer.BadParameter(f"what is said comes from the terminal or the standard input, got {positional}")
    model, tokenizer = models.load()
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
    try:
        session = ChatSession(model, tokenizer, system, {"max_new_tokens": max_new_tokens, **options})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    debug = bool(context.find_root().params.get("debug"))
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on Windows: no history of lines there
            import readline  # noqa: F401
        console.print(Text.assemble((str(model.combination), "bold"), "   /help lists the commands\n"))
        talk(session, console, lambda: console.input(Text(_PROMPT, style="bold")), debug)
    else:
        talk(session, console, _piped, debug)


def _piped() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return whole_text(line)


def talk(session: ChatSession, console: Console, read: Callable[[], str], debug: bool = False) -> None:
    """
    Read lines, and answer them, until there are no more or one says `/quit`. Whatever is said, by a user or by a chat template, the talk
    goes on: an error is one line, and the conversation is as it was. `debug` shows where
    errors come from.
    """
    while True:
        try:
            line = read().strip()
        except KeyboardInterrupt:
            console.print()
            continue
        except EOFError:
            if console.is_terminal:
                console.print()
            return
        except ValueError as error:  # what is read is in another encoding
            say_error(f"That line was not read: {error}")
            continue
        if line in ("/quit", "/exit"):
            return
        try:
            if line:
                _turn(session, console, line)
        except Exception as error:  # templates and models are others', and raise what they like
            say_error(said(error))
            if debug:
                traceback.print_exception(error)


def _turn(session: ChatSession, console: Console, line: str) -> None:
    if line == "/help":
        console.print(_help())
    elif line == "/compare":
        speaking = _Speaking(console)
        with speaking:
            session.compare(speaking)
    elif line.startswith("/"):
        console.print(Text(session.command(line), style="dim"))
    else:
        speaking = _Speaking(console)
        with speaking:
            reply = session.ask(line, lambda text: speaking(session.who, text))
        if not reply:
            console.print(Text("no reply", style="dim"))


class _Speaking:
    """Replies as they come, each behind the name of who says it."""

    def __init__(self, console: Console) -> None:
        self.console, self.who = console, ""

    def __call__(self, who: str, text: str) -> None:
        if who != self.who:
            self.end()
            self.who = who
            self.console.print(Text(f"{who} > ", style=f"bold {_COLOURS.get(who, 'magenta')}"), end="")
            text = text.lstrip()
        self.console.print(Text(text), end="", soft_wrap=True)

    def __enter__(self) -> _Speaking:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """The line of the last speaker is over."""
        if self.who:
            self.console.print()
        self.who = ""


def _help() -> Any:
    table = Table.grid(padding=(0, 2))
    for name, text in COMMANDS.items():
        table.add_row(Text(name, style="bold"), text)
    return table
