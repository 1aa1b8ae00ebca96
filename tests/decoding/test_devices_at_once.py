"""Members on devices of their own, at the same time: the tokens of one device, a trace that overlaps, and nothing left running."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from elsewhere import Trace, agreeing, near, put_elsewhere
from families import prompts
from random_cases import double, random_case

from hf_eft import EFTForCausalLM
from hf_eft.members.beside import Beside, Place, place_of
from hf_eft.members.releases import CACHE, cache_of

WAIT = 20.0  # seconds after which a thread that should have been let go on fails the test
CASES, CHUNK = 30, 15


class Handshake:
    """Lets a model's forward end only when another model's has begun since."""

    def __init__(self, first: Any, second: Any) -> None:
        self._met, self.alone = threading.Event(), 0
        self.left = 0  # how many forwards of the first are looked at
        self._handles = [
            first.register_forward_pre_hook(lambda *_: self._met.clear()),
            first.register_forward_hook(self._meet),
            second.register_forward_pre_hook(lambda *_: self._met.set()),
        ]

    def _meet(self, *_: Any) -> None:
        if self.left and not self._met.wait(WAIT):
            self.alone += 1
            self.left = 1  # one that waits in vain says enough
        self.left = max(0, self.left - 1)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.mark.parametrize("start", range(0, CASES, CHUNK))
def test_random_cases_give_the_tokens_of_one_device(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    families, ahead = ("llama", "qwen3", "gpt2", "gpt_neox", "mistral", "opt"), 0
    for number in range(start, start + CHUNK):
        _, inputs, options, how = random_case(number, rows=3)
        model, options["max_new_tokens"] = agreeing(families[number % len(families)]), 24
        if how.get("num_assistant_tokens", 0) > 4:
            how["num_assistant_tokens"] = 4
        if "assistant_model" in how:
            how["assistant_model"] = model.tuned if number % 3 else near(families[number % len(families)], 7)
        static = {"cache_implementation": "static"} if number % 4 == 1 else {}
        expected = model.generate(**inputs, **options).tolist()
        with monkeypatch.context() as patch:
            put_elsewhere(patch, model.base)
            got = model.generate(**inputs, **options, **how, **static).tolist()
            plain = model.generate(**inputs, **options).tolist()
        assert got == expected, f"case {number}: {options} {how} {static}"
        assert plain == expected, f"case {number}, plain: {options}"
        report = model.speculation
        ahead += report.ahead if report else 0
    assert ahead > 4, "hardly a block was drafted ahead and kept"


def test_the_next_block_is_drafted_while_the_base_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's look ends only when the drafter has begun to go on: who waited for the base first would wait in vain."""
    model, inputs = agreeing(), {"input_ids": prompts("even")["input_ids"][:1]}
    expected = model.generate(**inputs, max_new_tokens=40)
    put_elsewhere(monkeypatch, model.base)
    handshake, trace = Handshake(model.base, model.tuned), Trace()
    try:
        with trace.of({"base": model.base, "tuned": model.tuned, "reference": model.reference}):
            options = {"assistant_model": model.tuned, "num_assistant_tokens": 3}
            model.generate(**inputs, max_new_tokens=2)
            trace.events.clear()
            handshake.left = 6  # the prompt, and five blocks
            got = model.generate(**inputs, max_new_tokens=34, **options)
    finally:
        handshake.remove()
    assert torch.equal(got, expected[:, : got.shape[1]])
    assert handshake.alone == 0, "the base looked, and nobody drafted meanwhile"
    report = model.speculation
    assert report is not None and report.ahead >= 3
    looks = trace.during("base")[1:]  # after the prompt
    assert sum("tuned" in each for each in looks) >= report.ahead


def test_a_step_without_drafts_runs_both_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = agreeing(), prompts("even")["input_ids"][:1]
    expected = model.generate(ids, max_new_tokens=12)
    put_elsewhere(monkeypatch, model.base)
    handshake = Handshake(model.base, model.tuned)
    handshake.left = 12
    try:
        got = model.generate(ids, max_new_tokens=12)
    finally:
        handshake.remove()
    assert handshake.alone == 0 and torch.equal(got, expected)


def test_on_one_device_nobody_has_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: begun.append(self))
    model = agreeing()
    model.generate(**prompts("even"), max_new_tokens=6)
    model.generate(**prompts("even"), max_new_tokens=6, assistant_model=model.tuned, num_assistant_tokens=2)
    assert not begun and model.speculation is not None and model.speculation.ahead == 0


def test_a_base_on_disk_is_read_while_the_small_ones_work(tmp_path: Path) -> None:
    model, inputs = agreeing(), prompts("left")
    expected = model.generate(**inputs, max_new_tokens=20)
    away = copy.deepcopy(model.base)
    disk_offload(away, tmp_path / "weights", execution_device=torch.device("cpu"))
    assert place_of(away) == Place(torch.device("cpu"), True) and place_of(model.tuned) == Place(torch.device("cpu"), False)
    offloaded = EFTForCausalLM.from_models(away, tuned=model.tuned, reference=model.reference, alpha=0.3)
    trace = Trace()
    with trace.of({"base": away, "tuned": model.tuned}):
        got = offloaded.generate(**inputs, max_new_tokens=20, assistant_model=offloaded.tuned, num_assistant_tokens=2)
    assert torch.equal(got, expected)
    assert any("tuned" in each for each in trace.during("base")[1:])


def test_what_is_thrown_away_leaves_nothing_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation goes on from caches that drafters had been ahead in."""
    model, ids = agreeing(), prompts("even")["input_ids"][:1]
    put_elsewhere(monkeypatch, model.base)
    options = {"assistant_model": model.tuned, "num_assistant_tokens": 4, "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=15, **options)
    lengths = {name: cache.get_seq_length() for name, cache in cache_of(first).members.items()}
    assert set(lengths.values()) == {first.sequences.shape[1] - 1}
    again = model.generate(first.sequences, max_new_tokens=15, **{CACHE: cache_of(first)}, **options)
    assert torch.equal(again.sequences, model.generate(ids, max_new_tokens=30))


def test_an_error_beside_is_raised_here_and_nothing_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = agreeing(), prompts("even")["input_ids"][:1]
    put_elsewhere(monkeypatch, model.base)

    def fail(*_: Any) -> None:
        raise OSError("the disk is gone")

    before = threading.active_count()
    handle = model.base.register_forward_hook(fail)
    for options in ({}, {"assistant_model": model.tuned, "num_assistant_tokens": 2}):
        with pytest.raises(OSError, match="the disk is gone"):
            model.generate(ids, max_new_tokens=4, **options)
    handle.remove()
    cached = model.generate(ids, max_new_tokens=4, return_dict_in_generate=True)
    slow, gone_on = threading.Event(), []
    handles = [
        model.base.register_forward_pre_hook(lambda *_: slow.wait(WAIT) and None),
        model.base.register_forward_hook(lambda *_: gone_on.append(True)),
        model.tuned.register_forward_pre_hook(lambda *_: (slow.set(), fail())),
    ]
    with pytest.raises(OSError, match="the disk is gone"):
        model.generate(cached.sequences, **{CACHE: cache_of(cached)}, max_new_tokens=4)
    assert gone_on and threading.active_count() == before, "the base went on after the call had failed"
    for each in handles:
        each.remove()
    with pytest.raises(ValueError, match="left half way"):
        model.generate(cached.sequences, **{CACHE: cache_of(cached)}, max_new_tokens=4)


def test_a_thread_takes_the_modes_of_its_caller() -> None:
    def modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            assert Beside(modes).result() == modes()


def test_who_can_be_taken_back_only_so_far_does_not_draft_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that have slid, and recurrent states: the same tokens, one device after the other."""
    recurrent = EFTForCausalLM.from_models(
        double("llama", 0), tuned=double("mamba", 1), reference=double("llama", 2), alpha=0.3
    )
    for model in (agreeing("mistral"), recurrent):
        ids = prompts("one")["input_ids"]
        expected = model.generate(ids, max_new_tokens=40)
        with monkeypatch.context() as patch:
            put_elsewhere(patch, model.base)
            got = model.generate(ids, max_new_tokens=40, assistant_model=model.tuned, num_assistant_tokens=3)
        assert torch.equal(got, expected) and model.speculation is not None and model.speculation.ahead == 0


def test_places() -> None:
    model = double("llama", 0)
    assert place_of(model) == Place(torch.device("cpu"), False) and place_of(model).is_waited_for
    assert not Place(torch.device("cuda", 0), False).is_waited_for and Place(torch.device("cuda", 0), True).is_waited_for
    split = copy.deepcopy(model)
    split.hf_device_map = {"model": "cpu", "lm_head": "disk"}
    assert place_of(split).is_brought
    split.hf_device_map = {"": "cpu"}
    assert not place_of(split).is_brought
