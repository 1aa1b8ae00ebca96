"""What a training step through the combination takes in memory, against the sum of what it must hold.

    python examples/benchmarks/training_memory.py            # about 5 minutes on 2 CPU cores

A base of 106 million weights and a small pair of 20 million each, all of random weights, read 4 texts of 256 tokens of a vocabulary of
32,000. Each case runs in a process of its own, whose peak of resident memory is taken, less that of a process that only imports. The sum
is what a process takes that holds all weights and has the learner alone make a step (gradients, optimizer, kept activations), and one
piece of logits in float32. Writes `training_memory.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from transformers import LlamaConfig, LlamaForCausalLM

from hf_eft import EFTForCausalLM
from hf_eft.training import EFTForTraining

VOCAB, ROWS, LENGTH, PIECE = 32_000, 4, 256, 64
CASES = {
    "nothing": "a process that imports",
    "alone": "all weights, and a step of the learner alone",
    "in pieces": "a step through the combination, in pieces",
    "checkpointed": "the same, activations checkpointed",
    "alone, checkpointed": "all weights, and a step of the learner alone, activations checkpointed",
    "at once": "a step through the combination, with the logits of all positions",
    "int8": "in pieces, the base in int8 (dynamic quantisation of PyTorch)",
    "on disk": "in pieces, the base on disk (accelerate)",
}


def made(width: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=width * 8 // 3,
        num_attention_heads=width // 64,
    )
    return LlamaForCausalLM(config).eval()


def base_of(case: str, folder: str) -> Any:
    base = made(768, 8)
    if case == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch points to torchao, which is not needed for one layer type
            return torch.ao.quantization.quantize_dynamic(base, {torch.nn.Linear}, torch.qint8, inplace=True)
    if case == "on disk":
        from accelerate import disk_offload

        disk_offload(base, folder)
    return base


def run(case: str) -> float:
    """Make the step; its peak of resident memory in MiB."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if case != "nothing":
            step(case, folder)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(case: str, folder: str) -> None:
    base, reference, tuned = base_of(case, folder), made(256, 4), made(256, 4)
    ids = torch.randint(0, VOCAB, (ROWS, LENGTH))
    optimizer = torch.optim.AdamW(tuned.parameters())
    if "checkpointed" in case:
        tuned.activation_checkpointing_enable()
    if case.startswith("alone"):
        tuned.train()
        tuned.model(input_ids=ids).last_hidden_state.mean().backward()
        tuned.lm_head.weight.grad = torch.zeros_like(tuned.lm_head.weight)
    elif case == "at once":
        for model in (base, reference):
            model.requires_grad_(False)
        tuned.train()
        EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=0.5)(input_ids=ids, labels=ids).loss.backward()
    else:
        model = EFTForTraining.from_models(base, tuned=tuned, reference=reference, alpha=0.5).train()
        model.positions_per_piece = PIECE
        model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.case:
        print(run(options.case))
        return
    peaks = {}
    for case in CASES:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--case", case], capture_output=True, text=True, check=True
        )
        peaks[case] = float(done.stdout.split()[-1])
        print(f"{case}: {peaks[case]:.0f} MiB", flush=True)
    taken = {case: round(peak - peaks["nothing"], 1) for case, peak in peaks.items() if case != "nothing"}
    piece = PIECE * VOCAB * 4 / 2**20
    result = {
        "date": str(date.today()),
        "machine": machine(),
        "command": "python examples/benchmarks/training_memory.py",
        "tokens": ROWS * LENGTH,
        "vocabulary": VOCAB,
        "piece_of_logits_mib": round(piece, 1),
        "all_logits_of_a_member_mib": round(ROWS * LENGTH * VOCAB * 4 / 2**20, 1),
        "mib": {CASES[case]: value for case, value in taken.items()},
        "over_the_sum": {
            "in pieces": round(taken["in pieces"] / (taken["alone"] + piece), 3),
            "checkpointed": round(taken["checkpointed"] / (taken["alone, checkpointed"] + piece), 3),
            "at once": round(taken["at once"] / (taken["alone"] + piece), 3),
        },
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["over_the_sum"]))


if __name__ == "__main__":
    main()
