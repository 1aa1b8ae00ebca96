"""
What a process of a group does, each with a part of the base: `torchrun --nproc-per-node 2 tests/sharded.py FOLDER`.

`FOLDER` has models `base`, `tuned`, `reference`. What every way of decoding gave goes to `RANK.json` there; without a group
(`answer(FOLDER, None)`), to `alone.json`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DistributedConfig

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.decoding.speculative.clock import Clock

IDS = torch.tensor([[0, 5, 6, 7, 8], [9, 10, 11, 12, 13]])
MASK = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])


def ways(model: Any) -> dict[str, dict[str, Any]]:
    drafts = {"assistant_model": model.tuned, "num_assistant_tokens": 3}
    return {
        "greedy": {},
        "sampling": {"do_sample": True},
        "beams": {"num_beams": 3},
        "drafts": drafts,
        "drafts, sampling": {**drafts, "do_sample": True},
        "drafts, match": {**drafts, "do_sample": True, "coupling": "match", "seed": 3},
        "drafts of any length": {"assistant_model": model.tuned},  # by what was measured, which differs from process to process
        "static": {"cache_implementation": "static"},
        "drafts, static": {**drafts, "cache_implementation": "static"},
    }


def answer(folder: Path, rank: str | None) -> None:
    """What one process does, of a group or alone."""
    shard = {} if rank is None else {"distributed_config": DistributedConfig(tp_size=2)}
    base = AutoModelForCausalLM.from_pretrained(folder / "base", **shard)
    tuned, reference = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("tuned", "reference"))
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    if rank == "1":  # a clock that tells other times
        Clock._measured = lambda _: [9.0 * (time.perf_counter() % 1) for _ in range(4)]  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    for name, options in ways(model).items():
        torch.manual_seed(0)
        found[name] = model.generate(IDS, attention_mask=MASK, max_new_tokens=24, pad_token_id=0, **options).tolist()
    add_on = EFTLogitsProcessor(tuned, reference, attention_mask=MASK)
    found["add-on"] = base.generate(
        IDS, attention_mask=MASK, max_new_tokens=24, pad_token_id=0, logits_processor=[add_on], do_sample=False
    ).tolist()
    found["parts"] = base.model.layers[0].mlp.down_proj.weight.numel()
    if rank is not None:
        local = base.model.layers[0].mlp.down_proj.weight
        found["parts"] = local.to_local().numel()
    (folder / f"{'alone' if rank is None else rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer(Path(sys.argv[1]), os.environ["RANK"])
