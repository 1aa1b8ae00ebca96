"""What an adapter costs as a member: time per step and memory, against two small models and against PEFT's mixed batches.

    python examples/benchmarks/lora.py            # about 5 minutes on 2 CPU cores

A small model and a LoRA adapter on it, one decoding step of both: as one pass (what this library does), one after the other on the same
weights, as two full models, and as one batch of PEFT's (`adapter_names`). The four are timed in turn. Writes `lora.json` and
`lora.png` beside this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from speed_family import VOCAB, llama
from timing import in_turn, milliseconds, ratio
from transformers import DynamicCache

from hf_eft.evaluation import plots
from hf_eft.members.members import Members
from hf_eft.members.releases import CACHE

LAYERS = 8
TARGETS: dict[str, Any] = {"all linear layers": "all-linear", "queries and values": ["q_proj", "v_proj"]}


class Steps:
    """One decoding step after the other, of a set of members."""

    def __init__(self, members: Members, prompt: torch.Tensor) -> None:
        self.members, self.cache, self.token = members, members.new_cache(), prompt[:, -1:]
        members.step(prompt, cache=self.cache, use_cache=True, logits_to_keep=1)

    def __call__(self) -> None:
        self.members.step(self.token, cache=self.cache, use_cache=True, logits_to_keep=1)


class PeftSteps:
    """The same by PEFT's mixed batches."""

    def __init__(self, model: Any, prompt: torch.Tensor) -> None:
        self.names = ["__base__"] * len(prompt) + ["default"] * len(prompt)
        self.model, self.cache, self.token = model, DynamicCache(), torch.cat([prompt, prompt])[:, -1:]
        self.run(torch.cat([prompt, prompt]))

    def run(self, tokens: torch.Tensor) -> None:
        self.model(tokens, logits_to_keep=1, adapter_names=self.names, **{CACHE: self.cache})

    def __call__(self) -> None:
        self.run(self.token)


def weights(members: Members) -> int:
    """Bytes of distinct weights."""
    stores = {p.data_ptr(): p.nbytes for model in members.distinct_models.values() for p in model.parameters()}
    return sum(stores.values())


@torch.no_grad()
def measure(width: int, targets: str, batch: int, prompt_length: int, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    small = llama(LAYERS, width).to(dtype)
    tuned, reference = copy.deepcopy(small), copy.deepcopy(small)
    adapter = get_peft_model(small, LoraConfig(r=8, target_modules=TARGETS[targets], init_lora_weights=False)).eval()
    prompt = torch.randint(3, VOCAB, (batch, prompt_length))
    names = ("tuned", "reference")
    one_by_one = Members({"tuned": adapter}, names)
    one_by_one.stacks = []
    ours, full = Members({"tuned": adapter}, names), Members({"tuned": tuned, "reference": reference})
    times = in_turn(
        {
            "one pass": Steps(ours, prompt),
            "one after the other": Steps(one_by_one, prompt),
            "two full models": Steps(full, prompt),
            "PEFT's mixed batch": PeftSteps(adapter, prompt),
        },
        rounds,
    )
    return {
        "width": width, "layers": LAYERS, "adapter on": targets, "dtype": str(dtype).removeprefix("torch."), "batch": batch,
        "prompt": prompt_length, "ms": milliseconds(times),
        "against two full models": {name: ratio(times, name, "two full models") for name in times},
        "weights / one small model": round(weights(ours) / weights(Members({"tuned": tuned})), 3),
    }  # fmt: skip


def draw(results: dict[str, Any], path: Path) -> None:
    """Time per step over that of two full models."""
    settings = results["settings"]
    with plots.style():
        figure = Figure(figsize=(9, 0.62 * len(settings) + 1.6))
        axes = figure.subplots()
        colours = {
            "one pass": plots.colour("combined"),
            "one after the other": plots.colour("tuned"),
            "PEFT's mixed batch": plots.colour("reference"),
        }
        for i, (name, color) in enumerate(colours.items()):
            found = [setting["against two full models"][name] for setting in settings]
            values = [entry["median"] for entry in found]
            spread = [
                [max(0.0, v - e["quartiles"][0]) for v, e in zip(values, found, strict=True)],
                [max(0.0, e["quartiles"][1] - v) for v, e in zip(values, found, strict=True)],
            ]
            places = [row + 0.27 * (i - 1) for row in range(len(settings))]
            axes.barh(places, values, 0.25, xerr=spread, color=color, label=name, ecolor="#555555")
        labels = [
            f"{s['width']} wide, {s['dtype']}, {s['adapter on']}\nbatch {s['batch']}, prompt {s['prompt']}" for s in settings
        ]
        axes.set_yticks(range(len(settings)), labels)
        axes.invert_yaxis()
        axes.axvline(1.0, color="black", linestyle=":")
        axes.set_xlabel("time per step / two full small models (median and quartiles)")
        figure.legend(loc="outside lower center", ncols=len(colours))
        axes.set_title(f"An adapter and the model under it, one step\n{results['machine']}, {results['date']}")
        plots.save(figure, path, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # what PEFT says while it makes an adapter
    results: dict[str, Any] = {
        "machine": machine(), "date": date.today().isoformat(), "command": "python examples/benchmarks/lora.py", "settings": [],
    }  # fmt: skip
    settings = [
        (width, targets, batch, 16, torch.float32) for width in (512, 1024) for targets in TARGETS for batch in (1, 4, 16)
    ]
    settings += [(512, "all linear layers", batch, 1024, torch.float32) for batch in (1, 4)]
    settings += [(1024, "all linear layers", batch, 16, torch.bfloat16) for batch in (1, 4)]
    for width, targets, batch, prompt, dtype in settings:
        torch.manual_seed(0)
        results["settings"].append(measure(width, targets, batch, prompt, args.rounds, dtype))
        print(json.dumps(results["settings"][-1]), flush=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
