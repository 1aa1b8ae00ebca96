"""What an adapter costs as a member: time per step and memory, against two small models and against PEFT's mixed batches.

    python examples/benchmarks/lora.py            # about 10 minutes on 2 CPU cores

A small model and a LoRA adapter on it, one decoding step of both: as one pass (what this library does), one after the other on the same
weights, as two full models, and as one batch of PEFT's (`adapter_names`). The four are timed in turn; on static caches, compiled, the first
three. Writes `lora.json` and `lora.png` beside this file.
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
from transformers import DynamicCache, StaticCache

from hf_eft.evaluation import plots
from hf_eft.members.cache import EFTCache
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


class StaticSteps:
    """The same on static caches, compiled."""

    def __init__(self, members: Members, prompt: torch.Tensor, room: int) -> None:
        config = members.models[members.main].config
        self.members, self.token = members, prompt[:, -1:]
        self.cache = EFTCache.attach(StaticCache(config=config, max_cache_len=room), members.distinct_models)
        self.at = torch.tensor([[prompt.shape[1]]])
        members.step(prompt, cache=self.cache, use_cache=True, logits_to_keep=1)
        self.run = torch.compile(self.step, fullgraph=True)

    def step(self, token: torch.Tensor, at: torch.Tensor) -> list[torch.Tensor]:
        outputs = self.members.step(token, position_ids=at, cache=self.cache, use_cache=True, logits_to_keep=1)
        return [output.logits for output in outputs.values()]

    def __call__(self) -> None:
        self.run(self.token, self.at)
        self.at = self.at + 1


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
def measure(
    width: int, targets: str, batch: int, prompt_length: int, rounds: int, dtype: torch.dtype, static: bool = False
) -> dict[str, Any]:
    small = llama(LAYERS, width).to(dtype)
    tuned, reference = copy.deepcopy(small), copy.deepcopy(small)
    adapter = get_peft_model(small, LoraConfig(r=8, target_modules=TARGETS[targets], init_lora_weights=False)).eval()
    prompt = torch.randint(3, VOCAB, (batch, prompt_length))
    names = ("tuned", "reference")
    one_by_one = Members({"tuned": adapter}, names)
    one_by_one.stacks = []
    ours, full = Members({"tuned": adapter}, names), Members({"tuned": tuned, "reference": reference})
    by_name = {"one pass": ours, "one after the other": one_by_one, "two full models": full}
    if static:
        torch.compiler.reset()
        room = prompt_length + 2 * rounds + 16
        systems: dict[str, Any] = {name: StaticSteps(each, prompt, room) for name, each in by_name.items()}
    else:
        systems = {name: Steps(each, prompt) for name, each in by_name.items()}
        systems["PEFT's mixed batch"] = PeftSteps(adapter, prompt)
    times = in_turn(systems, rounds)
    return {
        "width": width, "layers": LAYERS, "adapter on": targets, "dtype": str(dtype).removeprefix("torch."), "batch": batch,
        "prompt": prompt_length, "static, compiled": static, "ms": milliseconds(times),
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
            rows = [row for row, setting in enumerate(settings) if name in setting["against two full models"]]
            found = [settings[row]["against two full models"][name] for row in rows]
            values = [entry["median"] for entry in found]
            spread = [
                [max(0.0, v - e["quartiles"][0]) for v, e in zip(values, found, strict=True)],
                [max(0.0, e["quartiles"][1] - v) for v, e in zip(values, found, strict=True)],
            ]
            places = [row + 0.27 * (i - 1) for row in rows]
            axes.barh(places, values, 0.25, xerr=spread, color=color, label=name, ecolor="#555555")
        labels = [
            f"{s['width']} wide, {s['dtype']}, {s['adapter on']}\nbatch {s['batch']}, prompt {s['prompt']}"
            + (", static, compiled" if s["static, compiled"] else "")
            for s in settings
        ]
        axes.set_yticks(range(len(settings)), labels)
        axes.margins(y=0.01)
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
        "machine": machine(), "threads": torch.get_num_threads(), "date": date.today().isoformat(),
        "command": "python examples/benchmarks/lora.py", "settings": [],
    }  # fmt: skip
    settings = [
        (width, targets, batch, 16, torch.float32, False)
        for width in (512, 1024)
        for targets in TARGETS
        for batch in (1, 4, 16)
    ]
    settings += [(512, "all linear layers", batch, 1024, torch.float32, False) for batch in (1, 4)]
    settings += [(1024, "all linear layers", batch, 16, torch.bfloat16, False) for batch in (1, 4)]
    settings += [
        (width, targets, batch, 16, torch.float32, True) for width in (512, 1024) for targets in TARGETS for batch in (1, 4)
    ]
    for width, targets, batch, prompt, dtype, static in settings:
        torch.manual_seed(0)
        results["settings"].append(measure(width, targets, batch, prompt, args.rounds, dtype, static))
        print(json.dumps(results["settings"][-1]), flush=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
