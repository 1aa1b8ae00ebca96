"""What a call asked for is that call's alone: other threads, and calls inside a call, take turns with it here where it would hurt most."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import VOCAB, prompts, shared
from meanwhile import Meanwhile, caught, in_thread
from transformers import LogitsProcessor

from hf_eft import Combination, EFTForCausalLM, tiny
from hf_eft.bytes import ByteLevelModel
from hf_eft.members.call import Lock, PerThread


def combined(**options: Any) -> EFTForCausalLM:
    base = shared("llama", 0)
    return EFTForCausalLM.from_models(base, tuned=shared("gpt2", 1), reference=base, **options)


def own(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """A prompt for the reference, which then no longer shares the base's states."""
    return {"reference": {"input_ids": torch.randint(3, VOCAB, (3, 7), generator=torch.Generator().manual_seed(seed))}}


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "member_inputs": {"member_inputs": own(1)},
    "other member_inputs": {"member_inputs": own(2)},
    "seed": {"do_sample": True, "coupling": "match", "seed": 5},
    "other seed": {"do_sample": True, "coupling": "match", "seed": 6},
    "speculative": {"assistant_model": "tuned", "num_assistant_tokens": 3},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 2},
}


def call(model: EFTForCausalLM, name: str, **more: Any) -> list[list[int]]:
    options = {k: model.members[v] if k == "assistant_model" else v for k, v in CALLS[name].items()}
    given = {"max_new_tokens": 8, "min_new_tokens": 8, **options, **more}
    return model.generate(**prompts("left"), **given).tolist()


OTHERS = ["plain", "other member_inputs", "other seed", "speculative"]
ONES = [name for name in CALLS if not name.startswith("other")]


@pytest.mark.parametrize("thread", [True, False], ids=["another thread", "inside"])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("one", ONES)
def test_a_call_is_as_if_it_were_alone(one: str, other: str, thread: bool) -> None:
    model = combined()
    alone = {name: call(model, name) for name in (one, other)}
    for at in (1, 4):
        meanwhile = Meanwhile(at, lambda: call(model, other), thread)
        assert call(model, one, logits_processor=[meanwhile]) == alone[one]
        assert meanwhile.results == [alone[other]]


class Signals(LogitsProcessor):
    """At its second step, says so and waits to be told to go on."""

    is_stateless = True

    def __init__(self, before: Callable[[], Any], reached: threading.Event, go_on: threading.Event) -> None:
        self.left, self.before, self.reached, self.go_on = 2, before, reached, go_on

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            self.before()
            self.reached.set()
            assert self.go_on.wait(timeout=60)
        return scores


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("one", ONES)
def test_a_call_that_begins_in_another_and_ends_after_it_is_as_if_it_were_alone(one: str, other: str) -> None:
    model = combined()
    alone = {name: call(model, name) for name in (one, other)}
    inside, over = threading.Event(), threading.Event()
    results: list[Any] = []
    holds = Signals(lambda: None, inside, over)
    later = threading.Thread(target=lambda: results.append(caught(lambda: call(model, other, logits_processor=[holds]))))
    try:
        starts = Signals(later.start, threading.Event(), inside)  # goes on once the other call is in the middle
        assert call(model, one, logits_processor=[starts]) == alone[one]
    finally:
        over.set()
        later.join()
    assert results == [alone[other]]


def test_a_schedule_counts_from_the_prompt_of_its_own_call() -> None:
    fading = Combination.emulate(alpha=lambda t: 1.5 if t < 4 else 0.0)
    model = combined(combination=fading)
    short = {"input_ids": torch.tensor([[5, 6]]), "max_new_tokens": 3}
    expected = call(model, "plain")
    assert call(model, "plain", logits_processor=[Meanwhile(4, lambda: model.generate(**short))]) == expected


def test_a_combination_that_drafts_for_a_combination() -> None:
    """Calls of two models, one inside the other, the inner of the very model as well."""
    model = combined()
    inputs = prompts("one")
    expected = model.generate(**inputs, max_new_tokens=8)
    drafter = EFTForCausalLM.from_models(shared("gpt2", 1), tuned=shared("gpt2", 2), reference=shared("gpt2", 1))
    for assistant in (drafter, model, copy.copy(model)):
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, assistant_model=assistant), expected)


def test_every_thread_reads_the_report_of_its_own_call() -> None:
    model = combined()
    call(model, "speculative")
    mine = model.speculation
    assert mine is not None and mine.tokens == 24
    seen = []

    def elsewhere() -> None:
        seen.append(model.speculation)
        model.generate(**prompts("one"), max_new_tokens=2, assistant_model=model.tuned)
        seen.append(model.speculation)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen[0] is None and seen[1].tokens == 2
    assert model.speculation is mine


REPLACED: dict[str, Callable[[EFTForCausalLM], None]] = {
    "`combination`": lambda model: setattr(model, "combination", Combination.emulate(alpha=0.1)),
    "The member 'tuned'": lambda model: setattr(model, "tuned", shared("gpt2", 2)),
    "`tokenizers`": lambda model: setattr(model, "tokenizers", {}),
}


@pytest.mark.parametrize("thread", [True, False], ids=["another thread", "inside"])
@pytest.mark.parametrize("what", REPLACED)
def test_what_a_call_is_made_of_is_not_replaced_while_it_runs(what: str, thread: bool) -> None:
    model = combined()
    expected = call(model, "plain")
    meanwhile = Meanwhile(3, lambda: REPLACED[what](model), thread)
    assert call(model, "plain", logits_processor=[meanwhile]) == expected
    [error] = meanwhile.results
    assert isinstance(error, RuntimeError) and f"{what} cannot be replaced while `generate` is running" in str(error)
    REPLACED[what](model)  # afterwards it may


def test_a_call_that_fails_is_left() -> None:
    model = combined()
    expected = call(model, "plain")

    def fail() -> None:
        raise OSError("the disk is full")

    class Fails(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return fail()  # type: ignore[return-value]

    with pytest.raises(OSError, match="disk is full"):
        call(model, "member_inputs", logits_processor=[Fails()])
    model.combination = model.combination  # no call is running
    assert call(model, "plain") == expected


# What is locked -------------------------------------------------------------------------------------------------------


def is_free(lock: Lock) -> bool:
    """Whether this thread could have it."""
    free = lock.acquire(blocking=False)
    if free:
        lock.release()
    return free


def test_texts_of_bytes_are_read_in_turns() -> None:
    base, *_, tokenizer = tiny.load()
    model = ByteLevelModel(base, tokenizer)
    one, two = (torch.tensor([[byte + 3 for byte in text]]) for text in (b"Question: Where was Grace", b"Oscar Palmer"))

    def write(ids: torch.Tensor, *others: LogitsProcessor) -> list[list[int]]:
        return model.generate(ids, max_new_tokens=4, logits_processor=[*others]).tolist()

    expected = write(one), write(two)
    write(one)
    missing = model.missing
    meanwhile = Meanwhile(2, lambda: write(two))
    assert write(one, meanwhile) == expected[0] and meanwhile.results == [expected[1]]
    assert model.missing == missing  # of this thread's last forward
    assert in_thread(lambda: model.missing) == []
    # A new text frees the states: no other thread comes between, while one is read.
    held = []
    for name in ("read", "reset"):
        plain = getattr(model._reader, name)

        def watched(*asked: Any, plain: Any = plain) -> Any:
            held.append(not in_thread(lambda: is_free(model._lock)))
            return plain(*asked)

        setattr(model._reader, name, watched)
    model(one)
    model.log_prob("born", "Where was Grace Baker ")
    assert len(held) == 4 and all(held)


def test_what_belongs_to_a_thread_or_guards_something_can_be_copied() -> None:
    value = PerThread()
    value.value = 3
    for copied in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert copied.value is None
    lock = Lock()
    with lock, copy.deepcopy(lock), pickle.loads(pickle.dumps(lock)):
        assert not in_thread(lambda: is_free(lock))
    assert in_thread(lambda: is_free(lock))
    model = combined()
    call(model, "speculative")
    other = copy.deepcopy(model)
    assert other.speculation is None and call(other, "speculative") == call(model, "speculative")
