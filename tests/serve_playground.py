"""
Playgrounds in a process of their own, so that Gradio's threads and warnings stay out of the tests.

    python tests/serve_playground.py three PORT several PORT

Serves scenarios (`three`, `several`, `endless`, `pictures`), each at a port, says `ready` once they are there, and ends when the standard
input does.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from lookers import combination, processor
from seeing import PLACES

from hf_eft import Combination, EFTForCausalLM, Truncation, playground, tiny


class Endless(torch.nn.Module):
    """Says one word again and again until it is told to stop, and then that it was told."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.device, self.config, self.pace = model.device, model.config, threading.Event()

    def generate(self, ids: torch.Tensor, streamer: Any, stopping_criteria: Any, **_: Any) -> torch.Tensor:
        streamer.put(ids.cpu())
        while not bool(stopping_criteria(ids, None).all()):
            self.pace.wait(0.02)  # as a model would: what waits to be shown must not grow without end
            ids = torch.cat([ids, torch.tensor([[537]])], dim=1)
            streamer.put(ids[0, -1:].cpu())
        print("stopped", flush=True)
        return ids


def model_of(scenario: str, family: Any) -> EFTForCausalLM:
    """The combination of a scenario: three members, several tuned ones, or a base that does not end."""
    if scenario == "several":
        recipe = Combination.steer({"helpful": 0.7, "brief": 0.3}, truncation=Truncation("base", 0.99))
        tuned = {"helpful": family.tuned, "brief": family.reference}
        return EFTForCausalLM.from_models(family.base, tuned=tuned, reference=family.reference, combination=recipe)
    model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference)
    if scenario == "endless":
        model._members.models["base"] = Endless(family.base)  # type: ignore[assignment]
    return model


def page_of(scenario: str, family: Any) -> tuple[EFTForCausalLM, Any, Any]:
    """The combination, its tokenizer, and the processors of members that have their own."""
    if scenario != "pictures":
        return model_of(scenario, family), family.tokenizer, None
    model = combination("qwen2_vl", "llava", "llava")
    model.generation_config.suppress_tokens = PLACES
    for member in model.members.values():
        member.generation_config.suppress_tokens = PLACES
    other = processor("llava")
    return model, processor("qwen2_vl"), {"tuned": other, "reference": other}


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = tiny.load()
    pages = []
    for scenario, port in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        model, tokenizer, processors = page_of(scenario, made)
        pages.append(playground.launch(model, tokenizer, processors=processors, port=int(port), prevent_thread_lock=True))
    print("ready", flush=True)
    sys.stdin.read()
    for blocks in pages:
        blocks.close(verbose=False)
