"""What a tuning run was asked for and how it went: a file in its folder, by which a run that was stopped is known again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import as_json, load_json, write
from ..files.json_lines import shown

NAME = "tuning.json"
CHECKPOINTS = "checkpoints"
_OF = "a run of hf-eft tune"
_WHAT_TO_DO = "Choose another folder, run it as before, or begin anew with --restart"


@dataclass
class Record:
    r"""
    A run.

    Args:
        identity (`dict`): What its result depends on.
        total (`int`): How many steps it has.
        losses (`list[dict]`): The training loss: `step` and `loss`.
        held_out (`list[dict]`): Each look at the held-out part: `step`, `loss`, and the `answers` to `asked`.
        asked (`list[dict]`): The held-out prompts that are answered, as texts, and what was expected.
        strengths (`list[dict]`): The strengths of use that were tried at the end: `alpha`, and the held-out `loss`.
        recommended (`float`, *optional*): The best of them.
        stopped (`int`, *optional*): The last step, when all is done.
    """

    identity: dict[str, Any]
    total: int = 0
    losses: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    strengths: list[dict[str, float]] = field(default_factory=list)
    recommended: float | None = None
    stopped: int | None = None

    @classmethod
    def of(cls, folder: Path, identity: Mapping[str, Any], restart: bool = False) -> Record:
        r"""
        The record of a folder, or a new one. With `restart`, checkpoints of an earlier run are thrown away.

        Raises:
            `ValueError`: If the folder has something else in it, or a run that was asked for otherwise, saying what differs.
        """
        if not (folder / NAME).is_file():
            there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
            if there:
                raise ValueError(
                    f"{folder} has {', '.join(there[:3])} in it and is no tuning run, so that something could be lost: choose a new or an "
                    "empty folder"
                )
            return cls(dict(identity))
        found = load_json(folder / NAME)
        if not isinstance(found, dict) or found.pop("of", None) != _OF:
            raise ValueError(f"{folder / NAME} is none of hf-eft tune. Choose another folder")
        if restart:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            return cls(dict(identity))
        try:
            record = cls(**found)
        except TypeError as error:
            raise ValueError(
                f"{folder / NAME} is of another version of hf-eft tune: {error}. Begin anew with --restart"
            ) from error
        names = {**identity, **record.identity}
        changed = [
            f"{name} was {shown(record.identity.get(name))} and is {shown(identity.get(name))}"
            for name in names
            if record.identity.get(name) != identity.get(name)
        ]
        if changed:
            raise ValueError(f"{folder} is of another run: {'; '.join(changed)}. {_WHAT_TO_DO}")
        return record

    def since(self, step: int) -> None:
        """Forget what came after a step, from which it goes on."""
        self.losses = [each for each in self.losses if each["step"] <= step]
        self.held_out = [each for each in self.held_out if each["step"] <= step]
        self.strengths, self.recommended, self.stopped = [], None, None

    @property
    def lowest(self) -> dict[str, Any]:
        """The look at the held-out part with the lowest loss."""
        return min(self.held_out, key=lambda each: each["loss"])

    def write(self, folder: Path) -> None:
        """Put it into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / NAME, as_json({"of": _OF, **asdict(self)}))
