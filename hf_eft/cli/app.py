"""The application: its root, where it prints, and how what goes wrong is said: one line on the standard error and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from .._version import __version__

FAILED, MISUSED, SOME_FAILED, STOPPED = 1, 2, 3, 130

console = Console()
notes = Console(stderr=True)

_Shown: Any = typer.BadParameter.__mro__[2]  # the root of all errors that are shown, which typer does not export


class Failure(_Shown):
    """Something went wrong that no other option would have helped: exit code 1."""

    exit_code = FAILED


class _Group(TyperGroup):
    """Commands whose errors are lines. With `--debug`, what no one foresaw is a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, EOFError, BrokenPipeError, _Shown):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            raise Failure(said(error)) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            sys.exit(super().main(args, prog_name, complete_var, False, windows_expand_args, **extra))
        except typer.Abort:
            sys.exit(STOPPED)
        except _Shown as error:
            if type(error).__name__ != "NoArgsIsHelpError":  # then the help was shown instead
                say_error(error.format_message())
            sys.exit(error.exit_code)


app = typer.Typer(
    cls=_Group,
    help="Emulated fine-tuning: a large base model behaves as if it had been tuned as a small one was.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but for lines that could not be answered, 130 stopped with Ctrl-C.",
)


def said(error: Exception) -> str:
    """An error as a user reads it. One that nobody foresaw is said with its type."""
    if isinstance(error, OSError) and error.strerror:  # without its number
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError, ImportError, NotImplementedError, FloatingPointError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (`hf-eft --debug ...` shows where)"


def say_error(message: str) -> None:
    """One line on the standard error, however many the message has."""
    notes.print(Text.assemble(("Error: ", "bold red"), " ".join(message.split())), soft_wrap=True)


def say_warning(message: str) -> None:
    """One line on the standard error, without the place in the code that warns."""
    notes.print(Text.assemble(("Warning: ", "bold yellow"), " ".join(message.split())), soft_wrap=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-eft {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", envvar="HF_EFT_DEBUG", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Emulated fine-tuning: a large base model behaves as if it had been tuned as a small one was."""
