"""A base in int8, on disk, or moved with the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import build
from taught import batch_of, formula, gradients, rows
from transformers import Trainer, TrainingArguments

from hf_eft.training import EFTForTraining


def learning(base: object) -> EFTForTraining:
    return EFTForTraining.from_models(base, tuned=build("qwen3", 1), reference=build("qwen3", 2), alpha=0.5).train()


@pytest.mark.filterwarnings("ignore")
def test_a_base_in_int8() -> None:
    base = torch.ao.quantization.quantize_dynamic(build("llama", 0), {torch.nn.Linear}, dtype=torch.qint8)
    model, batch = learning(base), batch_of(rows(), "right")
    model.positions_per_piece = 5
    loss, expected = model(**batch).loss, formula(model, batch)
    torch.testing.assert_close(loss, expected, atol=0.15, rtol=0)  # activations are quantised by what is read together
    assert gradients(model, loss)


def test_a_base_on_disk_stays_there(tmp_path: Path) -> None:
    from accelerate import disk_offload

    batches = batch_of(rows(), "right")
    expected = learning(build("llama", 0))(**batches).loss
    base = build("llama", 0)
    disk_offload(base, tmp_path / "base")
    model = learning(base).to("cpu").float()
    assert {p.device.type for p in base.parameters()} == {"meta"}
    torch.testing.assert_close(model(**batches).loss, expected)
    data = [{key: value[i] for key, value in batches.items()} for i in range(3)]
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    before = [p.detach().clone() for p in model.learner.parameters()]
    Trainer(model, TrainingArguments(str(tmp_path / "run"), max_steps=1, **options), train_dataset=data).train()
    assert not all(map(torch.equal, before, model.learner.parameters()))


def test_a_model_that_is_cast_is_whole() -> None:
    bases = [build("llama", 0), build("llama", 5)]
    model = EFTForTraining.from_models(bases, reference=build("qwen3", 2), alpha=0.5).double()
    assert {p.dtype for member in (*bases, model.learner, model.reference) for p in member.parameters()} == {torch.float64}
    assert list(dict(model.named_children())) == ["base", "tuned", "reference"]
