"""The folder of a delta: its weights, what it says of itself, its tokenizer, its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files.learnt import LEARNT, Learnt
from ..folders.card_delta import delta_card
from ..folders.folder import install, staged, write_adapter, write_member
from ..members.learnt import describe_base, set_learnt
from ..recipe.combination import REFERENCE, TUNED
from .model import EFTForTraining
from .record import Record

# What one kind of delta has and another has not.
_WEIGHTS = ("config.json", "generation_config.json", "adapter_config.json", LEARNT)


def write_delta(model: EFTForTraining, tokenizer: Any, learnt: Learnt, record: Record, output: Path) -> None:
    r"""
    Write what learnt as a folder that loads as a member: whole, or not at all. A `README.md` that is there is kept.

    Args:
        model ([`EFTForTraining`]): The combination.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        learnt ([`Learnt`]): What it says of itself.
        record ([`Record`]): What was measured.
        output (`Path`): The folder.
    """
    member = model._members.adapters.get(TUNED)
    adapter = member.adapter if member is not None and isinstance(member.adapter, str) else None
    set_learnt(model.members[TUNED] if adapter is None or member is None else member.trunk, learnt, adapter)
    before = describe_base(model.members[REFERENCE])
    reference = (str(before.name), before.revision) if before.published else None
    with staged(output) as staging:
        new = staging / "new"
        if adapter is not None and member is not None:
            write_adapter(model.members[TUNED], member, new)
        else:
            write_member(TUNED, model.members[TUNED], new)
        tokenizer.save_pretrained(new)
        if not (output / "README.md").exists():
            card = delta_card(learnt, adapter=adapter is not None, reference=reference, measured=measured(record))
            (new / "README.md").write_text(card, encoding="utf-8")
        weights = [path.name for pattern in ("*.safetensors", "*.safetensors.index.json") for path in output.glob(pattern)]
        install(new, output, staging / "old", gone=(*_WEIGHTS, *weights))


def measured(record: Record) -> list[str]:
    """The losses as a card has them."""
    tried = ", ".join(f"{each['alpha']:g}: {each['loss']:.4f}" for each in record.strengths)
    return [
        f"Held-out loss of the base alone: {record.held_out[0]['loss']:.4f}; lowest, at the strength in training: "
        f"{record.lowest['loss']:.4f}, after {record.lowest['step']} of {record.stopped} steps.",
        f"Held-out loss by strength of use: {tried}.",
    ]
