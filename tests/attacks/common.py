"""What the attacks share: a folder to spoil, code that leaves a trace when it runs, and what counts as refused."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import transformers  # noqa: E402
from families import build  # noqa: E402

from hf_eft import EFTForCausalLM, hub  # noqa: E402

NAMES = ("base", "tuned", "reference")


class GotThroughError(Exception):
    """The attack worked."""


@functools.cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="attacks-"))
    for seed, name in enumerate(NAMES):
        build("llama", seed).save_pretrained(folder / "plain" / name)
    hub.load(members_of(folder))[0].save_pretrained(folder / "saved", card=False)
    return folder


def members_of(folder: Path) -> dict[str, Path]:
    return {name: folder / "plain" / name for name in NAMES}


def plain(folder: Path) -> dict[str, Path]:
    """Three plain models, each in a folder."""
    shutil.copytree(_template() / "plain", folder / "plain")
    return members_of(folder)


def saved(folder: Path, name: str = "saved") -> Path:
    """A saved combination of three models."""
    shutil.copytree(_template() / "saved", folder / name)
    return folder / name


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    description = json.loads(path.read_text()) if path.exists() else {}
    change(description)
    path.write_text(json.dumps(description))


def payload(folder: Path) -> str:
    """Python code that leaves a trace."""
    return f"open({str(folder / 'the_code_ran')!r}, 'w').close()\n"


def check_no_code_ran(folder: Path) -> None:
    if (folder / "the_code_ran").exists():
        raise GotThroughError("code from the folder ran")


def refused(reason: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The message of the refusal, which must give this reason."""
    try:
        call(*args, **kwargs)
    except (ValueError, TypeError, OSError) as error:
        if not re.search(reason, str(error), re.DOTALL):
            raise GotThroughError(f"refused, but not because of {reason!r}: {error}") from error
        return str(error)
    raise GotThroughError(f"accepted, expected a refusal because of {reason!r}")


def refused_every_way(reason: str, where: Any, **kwargs: Any) -> str:
    """Refused whichever way a combination is loaded."""
    for load in (hub.load, EFTForCausalLM.from_pretrained, transformers.AutoModelForCausalLM.from_pretrained):
        said = refused(reason, load, where, **kwargs)
    return said


def run(attack: Callable[[Path], str]) -> None:
    """Run an attack from the command line: exit with 0 and say why it was refused, or with 1."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(f"refused: {attack(Path(folder))}")
        except GotThroughError as error:
            print(f"GOT THROUGH: {error}")
            sys.exit(1)
