"""Names of members that are paths, attributes or each other, and adapters that are on themselves."""

from pathlib import Path

from common import edit, refused_every_way, run, saved

NAMES = ("../tuned", "tuned/..", "/tuned", "C:tuned", "__class__", "_members", "tuned\n", "", 7, "base", "t" * 65, "con fig")


def attack(folder: Path) -> str:
    where = saved(folder)
    config = (where / "config.json").read_text()

    def spoil(reason: str, **changes: object) -> str:
        edit(where / "config.json", lambda config: config.update(changes))
        said = refused_every_way(reason, where)
        (where / "config.json").write_text(config)
        return said

    for name in NAMES:
        spoil("A member cannot be called|The names of members must", member_names=["base", name, "reference"])
    spoil("must be a list", member_names={"base": 1})
    for adapters in (
        {"tuned": "tuned"},
        {"tuned": "reference", "reference": "tuned"},
        {"other": "base"},
        {"tuned": "../x"},
        ["tuned"],
        {"tuned": 1},
    ):
        spoil("`adapters` must|A member cannot be called", adapters=adapters)
    for shared in ({"tuned": "tuned"}, {"tuned": "reference", "reference": "tuned"}, {"tuned": "other"}, ["tuned"]):
        said = spoil("`shared_members` must", shared_members=shared)
    return said


if __name__ == "__main__":
    run(attack)
