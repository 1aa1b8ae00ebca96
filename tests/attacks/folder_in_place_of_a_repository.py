"""A folder, beside the recipe, that is called as the repository that the recipe names: transformers would read it in its place."""

import contextlib
import shutil
from pathlib import Path

from common import NAMES, plain, refused, run
from fake_hub import serving

from hf_eft import hub


def attack(folder: Path) -> str:
    members = plain(folder)
    with serving(folder / "cache") as online:
        for name, place in members.items():
            online.add(f"someone/{name}", place)
        hub.compose({name: f"someone/{name}" for name in NAMES}, folder / "recipe", references=True)
        shutil.copytree(members["base"], folder / "someone/tuned")
        with contextlib.chdir(folder):
            return refused("folder 'someone/tuned' .*in place of the repository", hub.load, "recipe", allow_references=True)


if __name__ == "__main__":
    run(attack)
