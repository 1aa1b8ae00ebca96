"""A folder that has other repositories loaded, without the caller's word."""

from pathlib import Path

from common import NAMES, edit, refused_every_way, run, saved

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def attack(folder: Path) -> str:
    where = saved(folder)
    references = {name: {"repo_id": f"someone/{name}", "revision": COMMIT} for name in NAMES}
    edit(where / "config.json", lambda config: config.update(references=references))
    return refused_every_way("other repositories loaded.*someone/tuned.*allow_references=True", where)


if __name__ == "__main__":
    run(attack)
