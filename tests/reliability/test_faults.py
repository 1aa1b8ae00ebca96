"""A call that fails, wherever it does, leaves the models as they were, and the next call gives what a fresh model gives."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from families import PAD, SEED, build, prompts
from faults import ERRORS, failing, fingerprint
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import hf_eft
from hf_eft import EFTForCausalLM, EFTLogitsProcessor, logits_process, modeling_eft
from hf_eft.decoding.speculative import scoring
from hf_eft.members.call import Lock

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it
NEW = 5
Run = Callable[..., list[list[int]]]


class Leaf:
    """A way in: its models, and what calls of it are like."""

    def __init__(self, name: str) -> None:
        base, tuned, reference = (build("llama", seed, num_hidden_layers=1) for seed in range(3))
        self.add_on: EFTLogitsProcessor | None = None
        if name == "adapters":
            torch.manual_seed(SEED)
            config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            tuned = get_peft_model(copy.deepcopy(reference), config).eval()
            self.model: Any = EFTForCausalLM.from_models(base, tuned=tuned)
        elif name == "add-on":
            self.model = base
            self.add_on = EFTLogitsProcessor(tuned, reference, pad_token_id=PAD)
        else:
            self.model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
        self.drafter = tuned if name == "add-on" else self.model.tuned
        self.models = [self.model, tuned, reference]

    def run(self, kind: str, **more: Any) -> list[list[int]]:
        rows, given = CALLS[kind]
        chosen: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, **given}
        if chosen.pop("drafted", False):
            chosen["assistant_model"] = self.drafter
        if self.add_on is not None:
            more["logits_processor"] = [*more.get("logits_processor", ()), self.add_on]
        torch.manual_seed(SEED)
        return self.model.generate(**prompts(rows), **chosen, **more).tolist()

    def state(self) -> dict[str, Any]:
        found = fingerprint(*self.models)
        if self.add_on is not None:
            assert self.add_on._lock.acquire(blocking=False)
            self.add_on._lock.release()
        return found


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("left", {}),
    "sampled": ("left", {"do_sample": True}),
    "beams": ("left", {"num_beams": 3}),
    "drafted": ("one", {"drafted": True, "num_assistant_tokens": 3}),
    "drafted, rows": ("left", {"drafted": True, "num_assistant_tokens": 3, "do_sample": True, "coupling": "match", "seed": 1}),
    "other prompts": ("left", {"member_inputs": {"reference": {"input_ids": torch.full((3, 4), 7)}}}),
    "static": ("left", {"cache_implementation": "static"}),
    "drafted, static": ("left", {"drafted": True, "num_assistant_tokens": 3, "cache_implementation": "static"}),
}
LEAVES = {
    "wrapper": ["greedy", "beams", "drafted", "drafted, rows", "other prompts", "static", "drafted, static"],
    "adapters": ["greedy", "beams", "drafted, rows"],
    "add-on": ["sampled", "beams", "drafted"],
}
EACH = pytest.mark.parametrize(("leaf", "kind"), [(leaf, kind) for leaf, kinds in LEAVES.items() for kind in kinds])
# Where a step may end: in a member, in the middle of one, in the states, in what puts members together.
PLACES: dict[str, tuple[Any, str]] = {
    "a member": (LlamaForCausalLM, "forward"),
    "a layer": (LlamaDecoderLayer, "forward"),
    "states that grow": (DynamicLayer, "update"),
    "states that move": (DynamicLayer, "reorder_cache"),
    "states that forget": (DynamicLayer, "crop"),
    "the combination": (modeling_eft, "combine"),
    "the combination of drafts": (scoring, "combine"),
    "the combination of the add-on": (logits_process, "combine"),
}


@pytest.fixture(scope="module")
def leaves() -> dict[str, Leaf]:
    return {name: Leaf(name) for name in LEAVES}


def check_after(leaf: Leaf, kind: str, expected: list[list[int]], before: dict[str, Any], what: Any) -> None:
    """Nothing is left of a call that failed."""
    found = leaf.state()
    assert found == before, (what, [key for key in before if found[key] != before[key]])
    assert leaf.run(kind) == expected, what
    if isinstance(leaf.model, EFTForCausalLM):
        leaf.model.combination = leaf.model.combination  # no call is running


def ready(leaves: dict[str, Leaf], name: str, kind: str) -> tuple[Leaf, list[list[int]], dict[str, Any]]:
    leaf = leaves[name]
    expected = leaf.run(kind)
    return leaf, expected, leaf.state()


@EACH
def test_what_a_user_brings_fails(leaves: dict[str, Leaf], leaf: str, kind: str) -> None:
    way, expected, before = ready(leaves, leaf, kind)
    with_streamer = CALLS[kind][0] == "one"
    for what in ("processor", "criterion", *(["streamer"] if with_streamer else [])):
        for at, error in ((1, ERRORS["an error"]), (4, ERRORS["interrupt"])):
            if what == "streamer" and kind.startswith("drafted") and at == 4:
                at = 2  # a block is one call
            with pytest.raises(type(error)):
                way.run(kind, **faults.options(what, at, error))
            check_after(way, kind, expected, before, (what, at))


@EACH
def test_a_step_ends_anywhere(leaves: dict[str, Leaf], leaf: str, kind: str) -> None:
    way, expected, before = ready(leaves, leaf, kind)
    chosen = random.Random(f"{SEED} {leaf} {kind}")
    seen = 0
    for what, (owner, name) in PLACES.items():
        calls = faults.count(owner, name, lambda: way.run(kind))
        for at in sorted({1, chosen.randint(1, calls)}) if calls else ():
            error = ERRORS[chosen.choice(list(ERRORS))]
            with failing(owner, name, at, error, after=chosen.random() < 0.5), pytest.raises(BaseException) as raised:
                way.run(kind)
            assert raised.value is error or raised.value.__cause__ is error, (what, at, raised.value)
            assert raised.value is error or isinstance(error, ArithmeticError), (what, at, raised.value)
            check_after(way, kind, expected, before, (what, at, error))
            seen += 1
    assert seen >= 5


ROOT = str(Path(hf_eft.__file__).parent)
# Where signals come between calls and at the beginning of functions only, not at any line: what is set up and taken down there.
_NOT_BY_LINES = ("call.py", "halfway.py")


class Interrupt:
    """Raises at the line number `at` of the package that is reached, as Ctrl-C does; without, counts them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.lines, self.where = at, 0, ""

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(ROOT) or name.endswith(_NOT_BY_LINES):
            return None
        return self.line

    def line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self.line

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


@pytest.mark.skipif(sys.gettrace() is not None, reason="lines are being traced already")
@EACH
def test_interrupted_at_any_line(leaves: dict[str, Leaf], leaf: str, kind: str) -> None:
    way, expected, before = ready(leaves, leaf, kind)
    with Interrupt() as counted:
        way.run(kind)
    chosen = random.Random(f"{SEED} {leaf} {kind}")
    for at in chosen.sample(range(1, counted.lines + 1), 6):
        with Interrupt(at) as interrupt, pytest.raises(KeyboardInterrupt):
            way.run(kind)
        check_after(way, kind, expected, before, interrupt.where)


def test_no_interrupt_comes_between_a_lock_and_who_holds_it() -> None:
    """It is taken by the interpreter's own code, between whose steps no signal is heeded; functions of Python have a beginning."""
    assert not hasattr(Lock.__enter__, "__code__") and not hasattr(Lock.__exit__, "__code__")
