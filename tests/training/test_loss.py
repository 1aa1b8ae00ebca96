"""The loss of the combination and its gradients are those of the stateless formula, in float64."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from adapted import PEFT_SAYS
from families import VOCAB, build, lora
from taught import FULL, LORA, batch_of, check_learns, formula, gradients, members, rows
from transformers import AutoConfig, AutoModelForCausalLM

from hf_eft import Combination, Truncation
from hf_eft.training import EFTForTraining

pytestmark = PEFT_SAYS


def learning(kind: str = FULL, alpha: float = 0.5, **options: Any) -> EFTForTraining:
    return EFTForTraining.from_models(**members(kind, **options), alpha=alpha).train()


@pytest.mark.parametrize("kind", [FULL, LORA])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("positions", [None, 5])
def test_loss_and_gradients_are_those_of_the_formula(kind: str, padding: str, positions: int | None) -> None:
    model = learning(kind)
    model.positions_per_piece = positions
    batch = batch_of(rows(), padding)
    check_learns(model, model(**batch).loss, formula(model, batch))


_SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
_SMALL |= {"intermediate_size": 48, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {
    "a soft cap": {"model_type": "gemma2", **_SMALL, "final_logit_softcapping": 1.5},
    "a scale": {"model_type": "cohere", **_SMALL, "logit_scale": 0.3},
    "a divisor": {"model_type": "granite", **_SMALL, "logits_scaling": 3.0},
}


@pytest.mark.parametrize("head", [*HEADS, "gpt2", "opt", "mamba"])
def test_heads_of_every_kind(head: str) -> None:
    def made(seed: int) -> Any:
        if head not in HEADS:
            return build(head, seed).double()
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**HEADS[head])).double().eval()

    model = EFTForTraining.from_models(made(0), tuned=made(1), reference=made(2), alpha=0.7)  # without dropout
    model.positions_per_piece = 4
    batch = batch_of(rows(), "right")
    check_learns(model, model(**batch).loss, formula(model, batch))


def test_no_logits_but_those_of_a_piece_are_kept() -> None:
    model = learning(LORA)
    model.positions_per_piece = 4
    batch = batch_of(rows([40, 40]), "right")
    model(**batch)  # looks how the members are made
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        model(**batch).loss.backward()
    sizes = [shape.numel() for shape in kept if len(shape) > 1 and shape[-1] == VOCAB and shape[-2] != 32]
    assert sum(sizes) <= 4 * VOCAB


def test_only_the_completion_is_learnt() -> None:
    model, batch = learning(), batch_of(rows(), "left")
    batch["labels"][:, :-3] = -100
    check_learns(model, model(**batch).loss, formula(model, batch))


def test_texts_packed_without_padding() -> None:
    model, texts = learning(LORA), rows()
    positions = torch.cat([torch.arange(len(text)) for text in texts])[None]
    ids = torch.cat(texts)[None]
    loss = model(input_ids=ids, position_ids=positions, labels=ids).loss
    check_learns(model, loss, formula(model, batch_of(texts, "right")))
    with pytest.raises(ValueError, match="there is an `attention_mask`"):
        model(input_ids=ids, position_ids=positions, labels=ids, attention_mask=torch.ones_like(ids))


def test_a_member_that_does_not_keep_packed_texts_apart_is_refused() -> None:
    model = learning(small="mamba")
    ids = torch.cat(rows())[None]
    positions = torch.cat([torch.arange(len(text)) for text in rows()])[None]
    with pytest.raises(ValueError, match=r"The member 'tuned' \(MambaForCausalLM\) does not keep texts apart|'reference'"):
        model(input_ids=ids, position_ids=positions, labels=ids)


def test_accumulated_batches_are_one_batch() -> None:
    model, batch = learning(LORA), batch_of(rows(), "right")
    whole = gradients(model, model(**batch).loss)
    count = int((batch["labels"][:, 1:] != -100).sum())
    parts = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(3)]
    loss = sum(model(**part, num_items_in_batch=torch.tensor(count)).loss for part in parts)
    torch.testing.assert_close(gradients(model, loss), whole, atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(reentrant: bool) -> None:
    model, batch = learning(LORA), batch_of(rows(), "left")
    expected = gradients(model, model(**batch).loss)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert {m.gradient_checkpointing for m in model.members["tuned"].modules() if hasattr(m, "gradient_checkpointing")} == {
        True
    }
    torch.testing.assert_close(gradients(model, model(**batch).loss), expected, atol=1e-9, rtol=0)


def test_under_autocast() -> None:
    model = EFTForTraining.from_models(
        build("llama", 0), tuned=build("qwen3", 1), reference=build("qwen3", 2), alpha=0.5
    ).train()
    batch = batch_of(rows(), "right")
    with torch.autocast("cpu", torch.bfloat16):
        loss, expected = model(**batch).loss, formula(model, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.float(), atol=0.03, rtol=0)


def test_members_with_prompts_of_their_own() -> None:
    model, batch, own = learning(), batch_of(rows([6, 6]), "right"), batch_of(rows([5, 8], seed=9), "left")
    own["input_ids"][:, -4:] = batch["input_ids"][:, -4:]
    batch["labels"][:, :-3] = -100
    loss = model(**batch, member_inputs={"tuned": {key: own[key] for key in ("input_ids", "attention_mask")}}).loss
    losses = []
    for i in range(2):
        reads = dict.fromkeys(model.members, batch["input_ids"][i]) | {
            "tuned": own["input_ids"][i][own["attention_mask"][i].bool()]
        }
        total = sum(
            c * model.members[name](input_ids=reads[name][None]).logits[0, -4:-1].log_softmax(-1)
            for name, c in model.combination.coefficients.items()
        )
        losses.append(-total.log_softmax(-1).gather(-1, batch["input_ids"][i, -3:, None]))
    check_learns(model, loss, torch.cat(losses).mean())


def test_other_coefficients_and_a_truncation() -> None:
    given = members(FULL)
    batch = batch_of(rows(), "right")
    model = EFTForTraining.from_models(**given, beta=1.3).train()
    check_learns(model, model(**batch).loss, formula(model, batch))
    names = list(model.members)
    by_row = torch.tensor([[1.0, a, -a] for a in (0.2, 0.5, 0.9)])
    single = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(3)]
    sums = [
        formula(model, row, dict(zip(names, c, strict=True))) * (row["labels"][:, 1:] != -100).sum()
        for row, c in zip(single, by_row.tolist(), strict=True)
    ]
    expected = sum(sums) / (batch["labels"][:, 1:] != -100).sum()
    check_learns(model, model(**batch, coefficients=by_row).loss, expected)

    keep = Combination.emulate(alpha=0.5, truncation=Truncation("keep", 0.8))
    model = EFTForTraining.from_models(**given, combination=keep).train()
    ids = rows([7])[0]
    log_probs = {name: member(input_ids=ids[None]).logits[0].log_softmax(-1) for name, member in model.members.items()}
    total = sum(c * log_probs[name] for name, c in keep.coefficients.items())
    inside = torch.stack([oracle.nucleus(row, 0.8) for row in log_probs["tuned"].detach()])
    found = torch.where(inside, total, log_probs["tuned"])[:-1]
    check_learns(model, model(input_ids=ids[None], labels=ids[None]).loss, torch.nn.functional.cross_entropy(found, ids[1:]))


def test_a_batch_without_labels_is_worth_nothing() -> None:
    model, batch = learning(), batch_of(rows(), "right")
    batch["labels"][:] = -100
    loss = model(**batch).loss
    assert loss == 0 and not any(gradient.any() for gradient in gradients(model, loss).values())


def test_what_has_no_meaning_is_refused() -> None:
    model, batch = learning(LORA), batch_of(rows(), "right")
    padded = {**batch, "labels": batch["input_ids"]}
    unknown = {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == batch["labels"][1, 2], VOCAB + 3)}
    for given, said in [
        (padded, "which is nothing to learn"),
        (unknown, f"The label {VOCAB + 3} is no token"),
        ({**batch, "output_router_logits": True}, "`output_router_logits` was given together with labels"),
        ({**batch, "attention_mask": batch["attention_mask"][:, 1:]}, "`attention_mask` must"),
    ]:
        with pytest.raises(ValueError, match=said):
            model(**given)
    with torch.no_grad():
        model.base.model.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"The member 'base' returned logits .* in row 0, at position 0"):
        model(**batch)


def test_the_base_of_an_adapter_may_be_its_reference() -> None:
    reference = build("qwen3", 2).double()
    model = EFTForTraining.from_models(reference, tuned=lora(reference), reference=reference, alpha=0.5).train()
    batch = batch_of(rows(), "left")
    check_learns(model, model(**batch).loss, formula(model, batch))
