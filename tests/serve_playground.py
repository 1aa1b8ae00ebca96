"""
A playground in a process of its own, so that Gradio's threads and warnings stay out of the tests.

    python tests/serve_playground.py SCENARIO PORT

Says `ready` once the page is there, and serves until the standard input ends.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from hf_eft import Combination, EFTForCausalLM, Truncation, playground, tiny


class Endless(torch.nn.Module):
    """Says one word again and again until it is told to stop, and then that it was told."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.device, self.config = model.device, model.config

    def generate(self, ids: torch.Tensor, streamer: Any, stopping_criteria: Any, **_: Any) -> torch.Tensor:
        streamer.put(ids.cpu())
        while not bool(stopping_criteria(ids, None).all()):
            ids = torch.cat([ids, torch.tensor([[537]])], dim=1)
            streamer.put(ids[0, -1:].cpu())
        print("stopped", flush=True)
        return ids


def model_of(scenario: str, family: Any) -> EFTForCausalLM:
    """The combination of a scenario: `"three"`, `"several"` tuned members, or a base that is `"endless"`."""
    if scenario == "several":
        recipe = Combination.steer({"helpful": 0.7, "brief": 0.3}, truncation=Truncation("base", 0.99))
        tuned = {"helpful": family.tuned, "brief": family.reference}
        return EFTForCausalLM.from_models(family.base, tuned=tuned, reference=family.reference, combination=recipe)
    model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference)
    if scenario == "endless":
        model._members.models["base"] = Endless(family.base)  # type: ignore[assignment]
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = tiny.load()
    blocks = playground.launch(model_of(sys.argv[1], made), made.tokenizer, port=int(sys.argv[2]), prevent_thread_lock=True)
    print("ready", flush=True)
    sys.stdin.read()
    blocks.close(verbose=False)
