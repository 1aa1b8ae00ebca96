"""How the time per token grows: with the length of the text, the batch, the number of tuned members, and the vocabulary.

    python examples/benchmarks/growth.py            # about 6 minutes on 2 CPU cores

One decoding step of the wrapper and of the add-on against the sum of the members' bare forwards on caches of their own, timed in turn.
Tuned members are full models of their own or adapters on one. Writes `growth.json` and `growth.png` beside this file.
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
from speed_family import llama
from timing import Bare, in_turn, milliseconds, ratio

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor
from hf_eft.evaluation import plots
from hf_eft.files import as_json

LENGTHS = (128, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8, 16, 32)
MEMBERS = (1, 2, 4, 8)
VOCABULARIES = (32_000, 64_000, 128_000, 256_000)
COMBINED, OTHER = plots.colour("combined"), plots.colour("tuned")


class AddOn(Bare):
    """The base with the add-on; `ids` grow by a token each step, as in `generate`."""

    def __init__(self, base: Any, add_on: EFTLogitsProcessor, prompt: torch.Tensor) -> None:
        super().__init__(base, prompt)
        self.add_on, self.ids = add_on, prompt
        self.scores = torch.zeros(len(prompt), base.config.vocab_size)
        add_on(prompt, self.scores)

    def __call__(self) -> Any:
        self.ids = torch.cat([self.ids, self.token], dim=1)
        return self.add_on(self.ids, super().__call__().logits[:, -1].float())


@torch.no_grad()
def compare(
    base: Any, tuned: Any, reference: Any, combination: Combination, batch: int, length: int, rounds: int, parts: bool = True
) -> dict[str, Any]:
    """Milliseconds per step of the wrapper, of the add-on, and of the members' forwards alone."""
    prompt = torch.randint(3, base.config.vocab_size, (batch, length))
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=combination)
    add_on = EFTLogitsProcessor(tuned, reference, combination=combination, pad_token_id=-1)
    calls: dict[str, Any] = {"wrapper": Bare(model, prompt), "add-on": AddOn(base, add_on, prompt)}
    if parts:
        alone = [Bare(member, prompt) for member in model._members.distinct_models.values()]
        calls["parts"] = lambda: [part() for part in alone]
    times = in_turn(calls, rounds)
    against = {f"{name} / parts": ratio(times, name, "parts") for name in ("wrapper", "add-on")} if parts else {}
    return {"ms": milliseconds(times), **against}


def small_family(width: int, vocab: int) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    return llama(12, width, vocab), llama(4, width, vocab), llama(4, width, vocab)


def grow(rounds: int) -> dict[str, Any]:
    """Everything but the picture."""
    results: dict[str, Any] = {}
    eft = Combination.emulate()
    base, tuned, reference = small_family(512, 4_000)

    def add(kind: str, value: Any, **found: Any) -> None:
        results.setdefault(kind, {})[str(value)] = found
        print(kind, value, json.dumps(found), flush=True)

    for length in LENGTHS:
        add("length", length, **compare(base, tuned, reference, eft, 1, length, rounds))
    for batch in BATCHES:
        add("batch", batch, **compare(base, tuned, reference, eft, batch, 128, rounds))
    for members in MEMBERS:
        names = [f"tuned_{i}" for i in range(members)]
        recipe = Combination.steer(dict.fromkeys(names, 1 / members))
        full = {name: copy.deepcopy(tuned) for name in names}
        adapted: Any = None
        for name in names:
            config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
            if adapted is None:
                adapted = get_peft_model(copy.deepcopy(reference), config, adapter_name=name).eval()
            else:
                adapted.add_adapter(name, config)
        add(
            "tuned members", members,
            full=compare(base, full, reference, recipe, 1, 128, rounds),
            adapters=compare(base, dict.fromkeys(names, adapted), None, recipe, 1, 128, rounds, parts=False),
        )  # fmt: skip
    for vocab in VOCABULARIES:
        family = small_family(256, vocab)
        add("vocabulary", vocab, **{f"batch {b}": compare(*family, eft, b, 32, rounds) for b in (1, 8)})
    return results


def draw(results: dict[str, Any], path: Path) -> None:
    """Four panels: milliseconds per step against what grows."""
    with plots.style():
        figure = Figure(figsize=(14, 3.4))
        panels = figure.subplots(1, 4)

        def line(panel: Any, kind: str, label: str, color: str, style: str, *path: str) -> None:
            found = results[kind]
            values = []
            for entry in found.values():
                for key in path:
                    entry = entry[key]
                values.append(entry)
            panel.plot([int(key) for key in found], values, style, color=color, label=label, markersize=4)

        for panel, kind, unit in zip(panels[:2], ("length", "batch"), ("tokens of context", "rows"), strict=True):
            for name, color, style in (("parts", "black", ":o"), ("wrapper", COMBINED, "-o"), ("add-on", OTHER, "--o")):
                line(panel, kind, name, color, style, "ms", name)
            panel.set_xlabel(unit)
        for kind, color in (("full", COMBINED), ("adapters", OTHER)):
            line(panels[2], "tuned members", f"wrapper, {kind}", color, "-o", kind, "ms", "wrapper")
        line(panels[2], "tuned members", "parts, full", "black", ":o", "full", "ms", "parts")
        panels[2].set_xlabel("tuned members")
        for batch, color in (("batch 1", COMBINED), ("batch 8", OTHER)):
            line(panels[3], "vocabulary", f"wrapper, {batch}", color, "-o", batch, "ms", "wrapper")
            line(panels[3], "vocabulary", f"parts, {batch}", color, ":x", batch, "ms", "parts")
        panels[3].set_xlabel("tokens in the vocabulary")
        for panel in panels:
            panel.set_ylim(bottom=0)
            panel.set_ylabel("ms per step")
            panel.legend()
        figure.suptitle(f"Time per decoding step. {results['machine']}, {results['date']}")
        plots.save(figure, path, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # what PEFT says while it makes adapters
    results = {"machine": machine(), "date": date.today().isoformat(), "command": "python examples/benchmarks/growth.py"}
    results |= grow(args.rounds)
    args.output.write_text(as_json(results))  # what was measured is kept, whatever becomes of the picture
    draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
