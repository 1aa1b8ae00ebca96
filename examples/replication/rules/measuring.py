"""What is asked of whom: of the validation people everything, of the test people what was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import learn_gate
from asking import Group, packed
from benches import Seed
from candidates import CONSTANT, PLAIN, candidates
from choosing import CONSTANTS
from measure import shares
from rows import ROWS, Row
from safetensors.torch import load_file, save_file

from hf_eft import Combination, Gate

TUNED_ALONE = "tuned alone"
ALONE = {TUNED_ALONE: Combination({"tuned": 1.0}), "base alone": Combination({"base": 1.0})}
RECOMMENDED, RECOMMENDED_CONSTANT = "recommended", "recommended constant"
SAMPLED = 1.0  # the temperature at which some are asked, too


def trained_gates(folder: Path, row: Row, seed: Seed | None = None) -> dict[str, Gate]:
    """The gates of a row by form, from its files, or trained on the validation people of this seed first."""
    gates = {}
    for form in learn_gate.FORMS if row.gates else ():
        if form == "β" and row.unit != 1:
            continue
        weights, about = folder / f"{row.name}, {form}.safetensors", folder / f"{row.name}, {form}.json"
        if not about.exists() and seed is not None:
            folder.mkdir(parents=True, exist_ok=True)
            group = seed.asked(row, "validation")
            gate, told = learn_gate.train(group, seed.model(row), seed.models(row), form, row.unit, row.refuses)
            save_file(gate.weights, weights)
            about.write_text(json.dumps({"most": gate.most, **told}) + "\n")
        gates[form] = Gate(load_file(weights), most=json.loads(about.read_text())["most"])
    return gates


def validate(row: Row, seed: Seed, gates: Mapping[str, Gate]) -> dict[str, Any]:
    """Every option of every family on the validation people."""
    model, group = seed.model(row), seed.asked(row, "validation")
    found = {
        family: {option: shares(_about(group, model, recipe)) for option, recipe in of_family.items()}
        for family, of_family in candidates(row.unit, gates, row.whole).items()
    }
    return {"row": row.name, "seed": seed.seed, "validation": found}


def frozen(folder: Path, row: Row, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen, as recipes by family, what is recommended among them, and the family of the best rule."""
    like = next(each for each in ROWS if each.name == row.like)
    of_row = chosen["rows"][row.like]
    families = candidates(row.unit, trained_gates(folder, like))
    best = (*CONSTANTS, of_row["truncation"], of_row["rule"]) if row.group != "down-scaling" else (PLAIN,)
    recipes = {family: families[family][option] for family, option in of_row["options"].items() if row.whole or family in best}
    for name in (RECOMMENDED, RECOMMENDED_CONSTANT) if row.is_ordinary else (RECOMMENDED,):
        family, option = chosen[name]["family"], chosen[name]["option"]
        if family in families:  # a rule for β has no meaning for a delta that learnt through a base
            recipes[name] = families[family][option]
    return {"recipes": recipes, "options": of_row["options"], "rule": of_row["rule"]}


def ask(row: Row, seed: Seed, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen, of the test people, once. What the check of `hf-eft eval` goes by, of the validation people of this seed."""
    model, test, validation = seed.model(row), seed.asked(row, "test"), seed.asked(row, "validation")
    recipes = {name: recipe for name, recipe in ALONE.items() if row.whole or name == TUNED_ALONE} | asked["recipes"]
    sampled = [name for name in (PLAIN, CONSTANT, asked["rule"], RECOMMENDED) if name in recipes and row.whole]
    checked = [name for name in (TUNED_ALONE, PLAIN, RECOMMENDED, RECOMMENDED_CONSTANT) if name in recipes]
    return {
        "row": row.name,
        "seed": seed.seed,
        "options": {name: asked["options"][name] for name in recipes if name in asked["options"]},
        "rule": asked["rule"],
        "test": {name: packed(_about(test, model, recipe)) for name, recipe in recipes.items()},
        "test, sampled": {name: packed(_about(test, model, recipes[name], SAMPLED)) for name in sampled},
        "validation": {name: packed(_about(validation, model, recipes[name])) for name in checked} if row.is_ordinary else {},
    }


def _about(group: Group, model: Any, recipe: Combination, temperature: float = 0.0) -> dict[str, list[float]]:
    return {metric: values for metric, values in group.judged(model, recipe, temperature).items() if values}
