"""What the add-on is told for a call is of the thread that told it, and a thread that cannot know is refused."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import torch
from families import PAD, VOCAB, prompts, shared
from meanwhile import Meanwhile, caught, in_thread
from transformers import LogitsProcessor

from hf_eft import EFTLogitsProcessor


def run(add_on: EFTLogitsProcessor, inputs: dict[str, Any], *others: LogitsProcessor) -> list[list[int]]:
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": PAD, "logits_processor": [*others, add_on]}
    return shared("llama", 0).generate(**inputs, **options).tolist()


def small(**options: Any) -> EFTLogitsProcessor:
    return EFTLogitsProcessor(shared("gpt2", 1), shared("gpt2", 2), **options)


def masked(columns: int) -> dict[str, torch.Tensor]:
    """Three rows whose padding only the mask tells from the text."""
    ids = prompts("left")["input_ids"].clamp(min=3)
    mask = torch.ones_like(ids)
    mask[0, :columns] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_masks_are_of_the_thread_that_set_them() -> None:
    add_on, one, two = small(), masked(2), masked(5)
    expected = {n: run(small(attention_mask=x["attention_mask"]), x) for n, x in ((1, one), (2, two))}
    assert expected[1] != expected[2]
    add_on.attention_mask = one["attention_mask"]

    def elsewhere() -> list[list[int]]:
        add_on.attention_mask = two["attention_mask"]
        return run(add_on, two)

    meanwhile = Meanwhile(3, elsewhere)
    assert run(add_on, one, meanwhile) == expected[1] and meanwhile.results == [expected[2]]
    assert add_on.attention_mask is one["attention_mask"]
    assert run(add_on, one) == expected[1]


def test_prompts_of_members_are_of_the_thread_that_set_them() -> None:
    inputs = prompts("left")
    mine, theirs = ({"tuned": {"input_ids": torch.randint(3, VOCAB, (3, n))}} for n in (4, 7))

    def told(given: Any) -> EFTLogitsProcessor:
        return small(attention_mask=inputs["attention_mask"], member_inputs=given)

    add_on = told(mine)
    expected = run(told(mine), inputs), run(told(theirs), inputs)

    def elsewhere() -> list[list[int]]:
        add_on.member_inputs = theirs
        return run(add_on, inputs)

    add_on.member_inputs = mine
    meanwhile = Meanwhile(3, elsewhere)
    assert run(add_on, inputs, meanwhile) == expected[0] and meanwhile.results == [expected[1]]


def test_a_thread_that_set_nothing_takes_what_was_set_last() -> None:
    """As with a streamer: the mask is set, then `generate` runs in a thread."""
    add_on = small()
    for columns in (2, 5):
        inputs = masked(columns)
        add_on.attention_mask = inputs["attention_mask"]
        assert in_thread(lambda inputs=inputs: run(add_on, inputs)) == run(
            small(attention_mask=inputs["attention_mask"]), inputs
        )


def test_a_thread_that_cannot_know_what_was_meant_for_it_is_refused() -> None:
    add_on, one, two = small(), masked(2), masked(5)
    add_on.attention_mask = one["attention_mask"]

    def replaced() -> None:
        add_on.attention_mask = two["attention_mask"]

    # Another thread goes on with a call while this one replaces the mask.
    step = threading.Barrier(2)

    class Waits(LogitsProcessor):
        left = 2

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.left -= 1
            if self.left == 0:
                step.wait(timeout=60)
                step.wait(timeout=60)
            return scores

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(caught(lambda: run(add_on, one, Waits()))))
    thread.start()
    step.wait(timeout=60)
    replaced()
    step.wait(timeout=60)
    thread.join()
    assert isinstance(results[0], ValueError) and "Another thread replaced the add-on's `attention_mask`" in str(results[0])
    # What was set was never used, and is gone.
    add_on.attention_mask = one["attention_mask"]
    error = in_thread(lambda: run(add_on, one))
    assert isinstance(error, ValueError) and "twice before a call used them" in str(error)
    assert run(add_on, one) == run(small(attention_mask=one["attention_mask"]), one)  # here it is known


def test_setting_both_for_one_call_is_no_replacement() -> None:
    inputs = prompts("left")
    given = {"tuned": {"input_ids": torch.randint(3, VOCAB, (3, 4))}}
    add_on = small()
    add_on.attention_mask = inputs["attention_mask"]
    add_on.member_inputs = given
    expected = run(small(attention_mask=inputs["attention_mask"], member_inputs=given), inputs)
    assert in_thread(lambda: run(add_on, inputs)) == expected


def test_a_copy_is_told_on_its_own() -> None:
    one, two = masked(2), masked(5)
    add_on = small(attention_mask=one["attention_mask"])
    for other in (copy.copy(add_on), copy.deepcopy(add_on), pickle.loads(pickle.dumps(add_on))):
        assert torch.equal(other.attention_mask, one["attention_mask"])
        other.attention_mask = two["attention_mask"]
        assert add_on.attention_mask is one["attention_mask"]
        assert run(other, two) == run(small(attention_mask=two["attention_mask"]), two)
