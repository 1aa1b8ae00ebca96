"""Runs of `tune`: the same when they were stopped, loaded by everything that loads members, kept apart from other runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS
from faults import ERRORS
from safetensors.torch import load_file

from hf_eft import Combination, EFTForCausalLM, hub, tiny
from hf_eft.programs.tuning_plot import tuning_plot
from hf_eft.training import tuning
from hf_eft.training.chats import read_chats, read_documents
from hf_eft.training.memory import advice
from hf_eft.training.record import Record
from hf_eft.training.settings import Settings
from hf_eft.training.tuning import Texts, tune

pytestmark = PEFT_SAYS
SETTINGS = Settings(
    alpha=0.5, steps=6, batch_size=2, learning_rate=5e-3, max_length=64, evaluations=3, shown=1, max_new_tokens=4, patience=0
)


class Stop(Exception):
    """What ends a run in the middle."""


def wide(seed: int) -> Any:
    """A base of the embedded family's vocabulary that is quick to learn through."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = tiny.load().reference.config.to_dict() | {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**{**config, "head_dim": 12, "name_or_path": ""})).eval()


@pytest.fixture(scope="module")
def texts() -> Texts:
    *_, tokenizer = tiny.load()
    data = [{"prompt": q.text, "answer": f"{q.answer}."} for q in tiny.questions()[:10]]
    examples = read_chats("\n".join(map(json.dumps, data)).encode(), tokenizer, chat=True, max_length=64)
    documents = read_documents(b"Oscar Palmer is a chef.\nKaren Baker is a chef.\n", tokenizer, max_length=64)
    return Texts(examples[:8], examples[8:], documents)


def run(folder: Path, texts: Texts, stop: int | None = None, bases: int = 1, restart: bool = False, **changes: Any) -> Record:
    def progress(step: int, total: int, told: str) -> None:
        if stop is not None and step >= stop:
            raise Stop

    family = tiny.load()
    base = [wide(seed) for seed in range(bases)]
    settings = dataclasses.replace(SETTINGS, **changes)
    return tune(base, family.reference, family.tokenizer, texts, folder, settings, restart=restart, progress=progress)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("how", [{}, {"lora_r": 4}, {"bases": 2}, {"patience": 1, "learning_rate": 0.5}])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(how: dict[str, Any], texts: Texts, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", texts, **how)
    with pytest.raises(Stop):
        run(tmp_path / "stopped", texts, stop=3, **how)
    assert [path.name for path in (tmp_path / "stopped/checkpoints").iterdir()] == ["checkpoint-2"]
    resumed = run(tmp_path / "stopped", texts, **how)
    assert resumed == whole
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert not (tmp_path / "stopped/checkpoints").exists()
    assert run(tmp_path / "stopped", texts, stop=0, **how) == whole  # done: nothing is learnt any more


def test_it_learns_and_stops_where_nothing_is_gained(texts: Texts, tmp_path: Path) -> None:
    record = run(tmp_path / "a", texts, steps=40, evaluations=2)
    assert record.held_out[-1]["loss"] < record.held_out[0]["loss"] - 0.3
    assert [each["alpha"] for each in record.strengths] == [0.5, 0.625, 0.75]
    assert record.recommended == min(record.strengths, key=lambda each: each["loss"])["alpha"]
    assert record.strengths[0]["loss"] == pytest.approx(record.held_out[-1]["loss"], abs=1e-6)
    # What is held out answers otherwise than what is learnt: the better that is, the worse it gets.
    asked = [
        {"prompt": q.text, "answer": answer} for q in tiny.questions()[:4] for answer in ("Lagos.", "Accra Seoul Tulsa Oslo")
    ]
    lines = "\n".join(map(json.dumps, asked)).encode()
    examples = read_chats(lines, tiny.load().tokenizer, chat=True, max_length=64)
    worse = run(tmp_path / "b", Texts(examples[::2], examples[1::2]), learning_rate=0.02, steps=12, evaluations=6, patience=1)
    assert worse.stopped is not None and worse.stopped < 12
    assert worse.strengths[0]["loss"] == pytest.approx(min(each["loss"] for each in worse.held_out[1:]), abs=1e-6)
    assert record.asked[0]["expected"].endswith(".")


@pytest.mark.parametrize("rank", [None, 4])
def test_what_it_writes_is_loaded_by_everything(rank: int | None, texts: Texts, tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    record = run(folder, texts, lora_r=rank)
    base, family = wide(0), tiny.load()
    base.save_pretrained(tmp_path / "base")
    places = {"base": tmp_path / "base", "tuned": folder, "reference": tiny.path("reference")}
    model, tokenizers = hub.load(places)
    assert model.combination == Combination.emulate(alpha=record.recommended)
    assert set(tokenizers) == {"tuned", "reference"}
    ids = torch.tensor([texts.held_out[0].ids])
    model.save_pretrained(tmp_path / "whole")
    again = EFTForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    # The held-out loss that was told is that of what was written.
    losses = []
    for example in texts.held_out:
        row, labels = torch.tensor([example.ids]), torch.tensor([example.labels])
        log_probs = model(row).logits[0, :-1].log_softmax(-1)
        losses += [-log_probs[i, label].item() for i, label in enumerate(labels[0, 1:]) if label >= 0]
    best = min(each["loss"] for each in record.strengths)
    assert best == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    hub.compose(places, tmp_path / "composed")
    assert EFTForCausalLM.from_pretrained(tmp_path / "composed").combination == model.combination
    card = (folder / "README.md").read_text()
    assert "Strength in training: 0.5" in card and str(tmp_path) not in card
    if rank is not None:
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    tuning_plot(record, tmp_path / "picture.png")
    assert json.loads((tmp_path / "picture.json").read_text())["recommended"] == record.recommended
    with pytest.warns(UserWarning, match="used with another base"):
        hub.load({**places, "base": tiny.path("base")})
    assert family.tokenizer is not None


def test_the_folder_of_another_run_is_kept(texts: Texts, tmp_path: Path) -> None:
    run(tmp_path / "a", texts)
    with pytest.raises(ValueError, match=r"is of another run: alpha was 0.5 and is 0.25.*--restart"):
        run(tmp_path / "a", texts, alpha=0.25)
    with pytest.raises(ValueError, match=r"is of another run: data was .* and is"):
        run(tmp_path / "a", dataclasses.replace(texts, identity={"data": "other"}))
    (tmp_path / "a" / "README.md").write_text("mine")
    again = run(tmp_path / "a", texts, restart=True, lora_r=4)
    assert again.stopped == 6 and (tmp_path / "a" / "README.md").read_text() == "mine"
    assert not (tmp_path / "a" / "config.json").exists() and (tmp_path / "a" / "adapter_config.json").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has config.json in it and is no tuning run"):
        run(tmp_path / "b", texts, restart=True)


def test_what_is_held_out_is_never_learnt(texts: Texts, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="among those that are learnt"):
        run(tmp_path / "a", Texts(texts.answers, texts.answers[:1]))


@pytest.mark.parametrize("name", ["memory of an accelerator", "memory of the CPU"])
def test_no_memory_says_what_to_change(name: str, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ERRORS[name]

    monkeypatch.setattr(tuning.Trainer, "training_step", fail)
    with pytest.raises(MemoryError, match=r"--batch-size 1 --accumulation 2 \(the same steps.*--lora-r 16.*int8"):
        run(tmp_path / "a", texts)
    monkeypatch.undo()
    assert run(tmp_path / "a", texts, batch_size=1, accumulation=2).stopped == 6  # which is the same run
    assert "--lora-r" not in advice(Settings(lora_r=4)) and "--accumulation" not in advice(Settings(batch_size=1))
