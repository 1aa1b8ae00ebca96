"""The base's last states on disk: what is read again is what was computed, bit for bit, and the base is not asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import build
from taught import batch_of, rows

from hf_eft.training import EFTForTraining, heads
from hf_eft.training.kept import KeptStates


def learning(seed: int = 0) -> tuple[EFTForTraining, list[int]]:
    """A model, and a list of how many rows its base read at a time."""
    model = EFTForTraining.from_models(build("llama", seed), tuned=build("qwen3", 1), reference=build("qwen3", 2), alpha=0.5)
    asked: list[int] = []
    model.base.model.layers[0].register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    return model.train(), asked


def test_texts_are_read_once_and_a_run_that_was_stopped_finds_them(tmp_path: Path) -> None:
    model, asked = learning()
    texts = rows()
    expected = [model(**batch_of(texts[::step], side)).loss for step, side in ((1, "right"), (-1, "left"))]
    asked.clear()
    (kept,) = model.keep_states(tmp_path, tokens=20)
    assert kept.bytes == 20 * 32 * 4
    batches = [batch_of(texts[:1], "right"), batch_of(texts, "right"), batch_of(texts[::-1], "left")]
    losses = [model(**batch).loss for batch in batches]
    assert asked == [1, 2]  # of the second batch, two rows are new
    torch.testing.assert_close(losses[1:], expected)
    assert torch.equal(losses[1], model(**batches[1]).loss)

    model.save_pretrained(tmp_path / "checkpoint")
    again, asked = learning()
    (found,) = again.keep_states(tmp_path, tokens=20)
    assert len(found) == 3 and torch.equal(again(**batches[1]).loss, losses[1])
    assert asked == [1]  # to see where the head begins

    other, asked = learning(seed=7)
    (none,) = other.keep_states(tmp_path, tokens=20)
    assert len(none) == 0
    assert not torch.allclose(other(**batches[1]).loss, losses[1]) and asked


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="MiB are free"):
        KeptStates(tmp_path, build("llama", 0), 2**55)


def test_members_that_give_their_logits_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "bodies_of", lambda model: [])
    model, _ = learning()
    model.keep_states(tmp_path, tokens=20)
    with pytest.raises(ValueError, match="gives its logits at once"):
        model(**batch_of(rows(), "right"))
