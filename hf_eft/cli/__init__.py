"""`hf-eft`: emulated fine-tuning from the command line."""

from __future__ import annotations

try:
    import rich  # noqa: F401
    import typer  # noqa: F401
except ImportError as error:  # the extra is not installed
    raise SystemExit(f"The command line needs the extra `cli` ({error.name} is missing): pip install 'hf-eft[cli]'") from None

from . import chat, evaluate, generate, look, plan, publish, run, serve, tune  # noqa: F401  (they add their commands)
from .app import app, say_warning
from .options import generation_options

__all__ = ["app", "generation_options", "main"]


def main() -> None:
    """The entry point of `hf-eft`."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # what libraries tell those who program with them
    warnings.showwarning = lambda message, *where, **more: say_warning(str(message))
    app()
