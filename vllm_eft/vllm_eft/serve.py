"""
vLLM's server as `hf-eft serve --engine vllm` starts it, in whatever environment has vLLM.

    python -m vllm_eft.serve check FOLDER      # what is known to be refused, before an engine is there: one line of JSON
    python -m vllm_eft.serve run OPTIONS       # options of vLLM's server; it ends when the standard input does
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ._version import __version__
from .releases import SERVER, problem


def check(folder: Path) -> dict[str, Any]:
    r"""
    What is to be known of a folder without an engine.

    Args:
        folder (`Path`): The combination.

    Returns:
        `dict`: The versions here, and `refused`: why it cannot be served, or nothing.
    """
    from vllm import __version__ as vllm

    return {"vllm": vllm, "vllm_eft": __version__, "refused": problem() or _refused(folder)}


def _refused(folder: Path) -> str | None:
    from .config import EFTConfig
    from .trust import MEMBERS, check_folder, check_weights

    if not (folder / "config.json").is_file():
        return f"There is no config.json in {str(folder)!r}: name a folder that `save_pretrained` or `hf-eft compose` wrote."
    try:
        config = EFTConfig.from_pretrained(folder)
        config.recipe.rows()
        check_folder(folder)
        for name in config.keys().values():
            check_weights(name, folder / MEMBERS / name)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def run(options: list[str]) -> None:
    """vLLM's server, until it is told to end or whoever started it is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = [SERVER, *options]
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> None:
    """One of the two, as the command line says."""
    if arguments[:1] == ["check"] and len(arguments) == 2:
        print(json.dumps(check(Path(arguments[1]))), flush=True)
    elif arguments[:1] == ["run"]:
        run(arguments[1:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
