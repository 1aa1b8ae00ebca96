"""Saving where something is already: it is replaced as a whole, kept, or refused; never lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from saveable import PEFT_SAYS, adapter, logits, three

from hf_eft import Combination, EFTForCausalLM

pytestmark = PEFT_SAYS


def test_saving_over_the_folder_it_was_loaded_from(tmp_path: Path) -> None:
    model = adapter()
    three().save_pretrained(tmp_path)  # a full member where the adapter will be
    model.save_pretrained(tmp_path)
    loaded = EFTForCausalLM.from_pretrained(tmp_path)
    loaded.combination = Combination.emulate(alpha=0.5)
    loaded.save_pretrained(tmp_path)
    again = EFTForCausalLM.from_pretrained(tmp_path)
    assert again.combination == Combination.emulate(alpha=0.5)
    assert torch.equal(logits(again), logits(loaded))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "generation_config.json", "members"]


def test_a_card_is_written_and_one_that_is_there_is_kept(tmp_path: Path) -> None:
    model = three()
    model.save_pretrained(tmp_path / "none", card=False)
    assert not (tmp_path / "none/README.md").exists()
    model.save_pretrained(tmp_path / "card")
    assert "tuned" in (tmp_path / "card/README.md").read_text()
    (tmp_path / "card/README.md").write_text("mine")
    model.save_pretrained(tmp_path / "card")
    assert (tmp_path / "card/README.md").read_text() == "mine"


def test_another_model_is_not_overwritten(tmp_path: Path) -> None:
    build("llama", 0).save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds a model of type 'llama'"):
        three().save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_else_would_be_lost(tmp_path: Path) -> None:
    (tmp_path / "mine/members").mkdir(parents=True)
    with pytest.raises(ValueError, match="a folder 'members' of something else"):
        three().save_pretrained(tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        three().save_pretrained(tmp_path / "file")


def _no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError("no space left")


def test_what_fails_half_way_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three().save_pretrained(tmp_path / "saved")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    model = three(alpha=0.5)
    monkeypatch.setattr(type(model.members["reference"]), "save_pretrained", _no_space)
    for place in ("saved", "new/folder"):
        with pytest.raises(OSError, match="no space"):
            model.save_pretrained(tmp_path / place)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
