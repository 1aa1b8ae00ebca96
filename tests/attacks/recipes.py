"""Recipes with keys, names and numbers that are none."""

from pathlib import Path

from common import edit, refused_every_way, run, saved

RECIPES = {
    "keys that are not read": [
        {"coefficients": {"base": 1.0}, "code": "x"},
        {"coefficients": {"base": 1.0}, "truncation": {"rule": "base", "p": 0.9, "hook": "os.system"}},
    ],
    "names \\['other'\\]": [{"coefficients": {"other": 1.0}}],
    "must have|must be": [
        {"coefficients": [1.0]},
        "base",
        {"coefficients": {"base": "1.0"}},
        {"coefficients": {"base": float("nan")}},
        {"coefficients": {"base": float("inf")}},
        {"coefficients": {"base": 1.0}, "truncation": ["base"]},
        {"coefficients": {"base": 1.0}, "truncation": {"rule": "os.system", "p": 0.9}},
    ],
}


def attack(folder: Path) -> str:
    where = saved(folder)
    for reason, recipes in RECIPES.items():
        for recipe in recipes:
            edit(where / "config.json", lambda config, recipe=recipe: config.update(combination=recipe))
            said = refused_every_way(reason, where)
    return said


if __name__ == "__main__":
    run(attack)
