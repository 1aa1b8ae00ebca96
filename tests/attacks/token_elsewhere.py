"""A recipe names repositories so that the caller's token, or the stored one, is sent for them."""

from pathlib import Path

from common import NAMES, GotThroughError, plain, run
from fake_hub import serving

from hf_eft import hub


def attack(folder: Path) -> str:
    members = plain(folder)
    with serving(folder / "cache", stored_token="hf_stored") as online:
        for name, place in members.items():
            online.add(f"someone/{name}", place)
        hub.compose({name: f"someone/{name}" for name in NAMES}, folder / "recipe", references=True, token=False)
        online.add("me/recipe", folder / "recipe")
        online.requests.clear()
        hub.load("me/recipe", allow_references=True, token="hf_secret")
        for name in NAMES:
            if online.tokens(f"someone/{name}") - {None}:
                raise GotThroughError(f"a token was sent for someone/{name}")
        if online.tokens("me/recipe") != {"hf_secret"}:
            raise GotThroughError("the token was not sent where it was meant to go")
    return "the token went to the repository that the caller named, and no other"


if __name__ == "__main__":
    run(attack)
