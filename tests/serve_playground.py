"""
Playgrounds in a process of their own, so that Gradio's threads and warnings stay out of the tests.

    python tests/serve_playground.py three PORT several PORT

Serves scenarios (`three`, `several`, `endless`, `pictures`), each at a port, says what came of prompts that go wrong, and `ready` once all
are there, and ends when the standard input does.
"""

from __future__ import annotations

import copy
import itertools
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lookers import combination, processor
from seeing import PLACES

from hf_eft import Combination, EFTForCausalLM, Truncation, playground, tiny

ROOT = Path(__file__).resolve().parents[1]
STRENGTH = "strength \N{GREEK SMALL LETTER ALPHA}"
TYPED = "typed: "


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
    # (Of its own: what is written into a generation configuration would be there for every test that is given the same models.)
    model = copy.deepcopy(combination("qwen2_vl", "llava", "llava"))
    model.generation_config.suppress_tokens = PLACES
    for member in model.members.values():
        member.generation_config.suppress_tokens = PLACES
    other = processor("llava")
    return model, processor("qwen2_vl"), {"tuned": other, "reference": other}


def typed(family: Any) -> list[str]:
    """What a page says to prompts of which all but the last go wrong: one that its template refuses, one that is no text, none."""
    import gradio

    tokenizer = copy.deepcopy(family.tokenizer)
    refuses = "{% if 'system' in messages[0]['content'] %}{{ raise_exception('no such') }}{% endif %}"
    tokenizer.chat_template = refuses + tokenizer.chat_template
    blocks = playground.build(model_of("three", family), tokenizer)
    answers: Any = next(each.fn for each in blocks.fns.values() if each.name == "answers")
    said = []
    for prompt in ("system", "caf\udce9", " ", "What does Oscar Palmer enjoy?"):
        try:
            said.append(list(answers(prompt, True, STRENGTH, 24, 0, None, "", "", "", 1.0, 1.0))[-1][2])
        except gradio.Error as error:
            said.append(ascii(error.message))
    return said


class Served:
    """Playgrounds in a process of their own, at free ports, for a `with` block: an address for each scenario that is wanted."""

    def __init__(self, *scenarios: str) -> None:
        probes = [socket.create_server(("127.0.0.1", 0)) for _ in scenarios]
        ports = [probe.getsockname()[1] for probe in probes]
        for probe in probes:
            probe.close()
        self.at = {scenario: f"http://127.0.0.1:{port}/" for scenario, port in zip(scenarios, ports, strict=True)}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "serve_playground.py"), *itertools.chain(*zip(scenarios, map(str, ports), strict=True))],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            bufsize=0,  # a line that is read ahead would be hidden from `select`
        )  # fmt: skip
        self.heard: list[str] = []
        assert self.says("ready", 300)
        self.typed = [line.removeprefix(TYPED) for line in self.heard if line.startswith(TYPED)]

    def says(self, word: str, seconds: float) -> bool:
        """Whether the process says a word within some seconds."""
        while select.select([self._process.stdout], [], [], seconds)[0]:
            line = self._process.stdout.readline().decode()
            if not line or line.strip() == word:
                return bool(line)
            self.heard.append(line.strip())
        return False

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = tiny.load()
    pages = []
    for scenario, port in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        model, tokenizer, processors = page_of(scenario, made)
        pages.append(playground.launch(model, tokenizer, processors=processors, port=int(port), prevent_thread_lock=True))
    for said in typed(made):
        print(f"{TYPED}{said}")
    print("ready", flush=True)
    sys.stdin.read()
    for blocks in pages:
        blocks.close(verbose=False)
