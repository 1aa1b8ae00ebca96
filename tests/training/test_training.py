"""What learns, what does not, and that the loss is that of the stateless formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adapted import PEFT_SAYS
from families import PAD, VOCAB, build, lora

from hf_eft.training import EFTForTraining

pytestmark = PEFT_SAYS
FULL, LORA = "full", "lora"


def texts(padding: str) -> dict[str, torch.Tensor]:
    """Rows of texts, of which the first tokens are no labels."""
    lengths, longest = [4, 9, 7], 9
    generator = torch.Generator().manual_seed(3)
    ids, mask = torch.full((3, longest), PAD), torch.zeros(3, longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        where = slice(longest - length, None) if padding == "left" else slice(0, length)
        ids[row, where] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, where] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def members(kind: str, base: str = "llama", small: str = "qwen3") -> dict[str, Any]:
    base_model, reference = build(base, 0).double(), build(small, 2).double()
    tuned = lora(reference) if kind == LORA else build(small, 1).double()
    return {"base": base_model, "tuned": tuned, "reference": reference}


def formula(model: EFTForTraining, batch: dict[str, torch.Tensor], alpha: float) -> torch.Tensor:
    """The mean over tokens of -log softmax(base + alpha (tuned - reference)), row by row, without padding."""
    losses = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        ids, labels = ids[mask.bool()][None], labels[mask.bool()]
        log_probs = {name: model.members[name](input_ids=ids).logits[0].log_softmax(-1) for name in model.members}
        total = (log_probs["base"] + alpha * (log_probs["tuned"] - log_probs["reference"])).log_softmax(-1)
        losses += [-total[i, label] for i, label in enumerate(labels[1:]) if label != -100]
    return torch.stack(losses).mean()


def gradients(model: EFTForTraining) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", [FULL, LORA])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("positions", [None, 5])
def test_loss_and_gradients_are_those_of_the_formula(kind: str, padding: str, positions: int | None) -> None:
    model = EFTForTraining.from_models(**members(kind), alpha=0.5).train()
    model.positions_per_piece = positions
    batch = texts(padding)
    loss = model(**batch).loss
    loss.backward()
    found = gradients(model)
    expected = formula(model, batch, 0.5)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    wanted = gradients(model)
    assert found.keys() == wanted.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_new_member_begins_as_the_reference() -> None:
    import peft

    for config in (None, peft.LoraConfig(r=2, target_modules="all-linear")):
        base, reference = build("llama", 0), build("qwen3", 2)
        before = copy.deepcopy((base.state_dict(), reference.state_dict()))
        model = EFTForTraining.from_models(base, reference=reference, alpha=0.5, peft_config=config).train()
        batch = texts("left")
        batch.pop("labels")
        torch.testing.assert_close(model(**batch).logits.softmax(-1), base(**batch).logits.softmax(-1))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(**texts("left")).loss.backward()
        optimizer.step()
        torch.testing.assert_close(base.state_dict(), before[0], atol=0, rtol=0)
        after = {name.replace(".base_layer", ""): value for name, value in reference.state_dict().items() if "lora" not in name}
        torch.testing.assert_close(after, before[1], atol=0, rtol=0)
        assert not torch.allclose(model(**batch).logits.softmax(-1), base(**batch).logits.softmax(-1))


def test_several_bases_are_drawn() -> None:
    bases = [build("llama", 0), build("llama", 5)]
    reference = build("qwen3", 2)
    model = EFTForTraining.from_models([*bases, reference], tuned=build("qwen3", 1), reference=reference, alpha=0.5)
    alone = [
        EFTForTraining.from_models(base, tuned=model.learner, reference=reference, alpha=0.5) for base in (*bases, reference)
    ]
    batch = texts("right")
    each = [float(m(**batch).loss.detach()) for m in alone]
    torch.manual_seed(0)
    model.train()
    drawn = [float(model(**batch).loss.detach()) for _ in range(12)]
    assert {min(range(3), key=lambda i: abs(each[i] - loss)) for loss in drawn} == {0, 1, 2}
    torch.manual_seed(0)
    assert drawn == [float(model(**batch).loss.detach()) for _ in range(12)]
    assert {float(model.eval()(**batch).loss.detach()) for _ in range(5)} == {each[0]}
