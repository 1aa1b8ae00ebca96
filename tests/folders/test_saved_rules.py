"""Recipes with rules are saved with them: loaded again they say the same, and a gate is the one that was described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ruling
import torch
from families import prompts, shared
from safetensors.torch import load_file, save_file

from hf_eft import Combination, EFTConfig, EFTForCausalLM
from hf_eft.folders.gates import GATES, read_recipe
from hf_eft.folders.places import Place

MEMBERS = {"base": shared("llama", 0), "tuned": shared("qwen3", 1), "reference": shared("qwen3", 2)}
INPUTS = prompts("left")


def saved(folder: Path, alpha: Any) -> EFTForCausalLM:
    model = EFTForCausalLM.from_models(**MEMBERS, combination=Combination.emulate(alpha=alpha))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("alpha", [0.1 + 2 * ruling.RULES["kl"][0], ruling.GATE], ids=str)
def test_what_is_loaded_is_what_was_saved(alpha: Any, tmp_path: Path) -> None:
    model = saved(tmp_path, alpha)
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    assert loaded.combination == model.combination and str(loaded.combination) == str(model.combination)
    assert torch.equal(loaded(**INPUTS).logits, model(**INPUTS).logits)
    assert (tmp_path / GATES).exists() == (alpha is ruling.GATE)
    assert f"log p = {model.combination.formula}" in (tmp_path / "README.md").read_text()
    moved = tmp_path / "deeper" / "still"
    loaded.save_pretrained(moved)
    again = EFTForCausalLM.from_pretrained(tmp_path, subfolder="deeper/still")
    assert again.combination == model.combination
    loaded.combination = Combination.emulate()
    loaded.save_pretrained(moved)  # over the old one, whose gate goes
    assert not (moved / GATES).exists() and EFTForCausalLM.from_pretrained(moved).combination == Combination.emulate()


def test_a_users_rule_is_given_anew(tmp_path: Path) -> None:
    model = saved(tmp_path, ruling.RULES["written"][0])
    with pytest.raises(
        ValueError, match=r"\['tuned', 'reference'\] were callables, which are not saved, nor rules of your own"
    ):
        EFTForCausalLM.from_pretrained(tmp_path)
    loaded = EFTForCausalLM.from_pretrained(tmp_path, combination=model.combination)
    assert torch.equal(loaded(**INPUTS).logits, model(**INPUTS).logits)


def _no_file(path: Path) -> None:
    path.unlink()


def _other_weights(path: Path) -> None:
    save_file({name: weight + 1 for name, weight in load_file(path).items()}, path)


def _other_shapes(path: Path) -> None:
    save_file({name: weight[:1].clone() for name, weight in load_file(path).items()}, path)


def _no_safetensors(path: Path) -> None:
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle


def _too_large(path: Path) -> None:
    path.write_bytes(bytes(9 * 2**20))


def _elsewhere(path: Path) -> None:
    target = path.parent.parent / "elsewhere.safetensors"
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize(
    "change, message",
    [
        (_no_file, "There is no 'rules.safetensors'"), (_other_weights, "are those of another gate"),
        (_other_shapes, "of a gate on"), (_no_safetensors, "cannot be read as safetensors"),
        (_too_large, "expected at most 8,388,608: it is refused"), (_elsewhere, "leads out of the folder"),
    ],
)  # fmt: skip
def test_other_weights_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "combination"
    saved(folder, ruling.GATE)
    change(folder / GATES)
    with pytest.raises(ValueError, match=message):
        EFTForCausalLM.from_pretrained(folder)
    loaded = EFTForCausalLM.from_pretrained(folder, combination=Combination.emulate()) if change is not _elsewhere else None
    assert loaded is None or loaded.combination == Combination.emulate()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"members": 3}, "A gate is described by digest, drafting, hidden, members, most"),
        ({"hidden": 2**40}, "are those of another gate"),
        ({"members": ["base"]}, "2 to 8 different members"),
        ({"more": 1}, "A gate is described by"),
    ],
    ids=str,
)
def test_other_descriptions_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    saved(tmp_path, ruling.GATE)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("tuned", "reference"):
        config["combination"]["coefficients"][name]["rules"][0]["options"] |= options
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        EFTForCausalLM.from_pretrained(tmp_path)


def test_a_link_to_other_weights_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "combination"
    saved(folder, ruling.GATE)
    _elsewhere(folder / GATES)
    with pytest.raises(ValueError, match="leads out of the folder"):
        read_recipe(EFTConfig.from_pretrained(folder), Place.of(folder))
