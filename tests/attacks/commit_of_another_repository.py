"""A recipe on the Hub, loaded at a revision of its own: the members must not be fetched at it."""

from pathlib import Path

from common import NAMES, GotThroughError, plain, run
from fake_hub import serving

from hf_eft import hub


def attack(folder: Path) -> str:
    members = plain(folder)
    with serving(folder / "cache") as online:
        commits = {f"someone/{name}": online.add(f"someone/{name}", place) for name, place in members.items()}
        hub.compose({name: f"someone/{name}" for name in NAMES}, folder / "recipe", references=True)
        commits["me/recipe"] = online.add("me/recipe", folder / "recipe")
        for name in NAMES:  # the members' main branches move on
            online.commit(f"someone/{name}", {"config.json": b"{}"})
        online.requests.clear()
        hub.load("me/recipe", allow_references=True)
        for request in online.requests:
            parts = request.path.strip("/").split("/")
            if "resolve" in parts and parts[3] not in ("main", commits["/".join(parts[:2])]):
                raise GotThroughError(f"{request.path} is asked for at another repository's commit")
            if "resolve" in parts and parts[3] == "main" and not request.path.startswith("/me/recipe"):
                raise GotThroughError(f"{request.path} is asked for where it may have moved")
    return "each repository is fetched at its own commit"


if __name__ == "__main__":
    run(attack)
