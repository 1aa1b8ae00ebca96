"""What a `generate` call asks of speculation, and where it is taken from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from hf_eft.decoding.speculative.request import Request
from hf_eft.decoding.speculative.schedule import Automatic, Fixed, Way


def read(config: GenerationConfig | None = None, own: GenerationConfig | None = None, **options: Any) -> Request:
    assistant = None if own is None else SimpleNamespace(generation_config=own)
    return Request.read(None, None, assistant, config, options)


def test_the_block_is_what_the_call_says_then_its_configuration_then_the_assistants() -> None:
    own, config = GenerationConfig(num_assistant_tokens=7), GenerationConfig(num_assistant_tokens=6)
    assert [read(config, own, num_assistant_tokens=4).block, read(config, own).block, read(None, own).block] == [4, 6, 7]
    assert read(config, prompt_lookup_num_tokens=3).block == 3  # the prompt drafts
    assert read(GenerationConfig(prompt_lookup_num_tokens=2), num_assistant_tokens=4).block == 2
    assert read().block is None
    assert read(own=GenerationConfig(assistant_confidence_threshold=0.3)).confidence == 0.3


def test_a_block_that_nobody_gives_is_chosen_on_the_way() -> None:
    schedule = read().schedule([Way()], few=False)
    assert isinstance(schedule, Automatic) and schedule.next(1)[1] > 0
    for request, block, heuristic in (
        (read(num_assistant_tokens=4), 4, False),
        (read(num_assistant_tokens=4, num_assistant_tokens_schedule="heuristic_transient"), 4, True),
        (read(num_assistant_tokens=4, num_assistant_tokens_schedule="constant"), 4, False),
        (read(num_assistant_tokens_schedule="heuristic"), 5, True),
    ):
        schedule = request.schedule([Way()], few=False)
        assert isinstance(schedule, Fixed) and (schedule.block, schedule.heuristic) == (block, heuristic)


def test_noise_is_shared_only_where_tokens_are_drawn_by_it() -> None:
    sampled, greedy = (GenerationConfig(do_sample=each, max_length=9) for each in (True, False))
    match = Request.read("match", 3, None, None, {})
    assert match.settings(sampled, 2).noise is not None
    assert match.settings(greedy, 2).noise is None
    assert read().settings(sampled, 2).noise is None
    assert (match.settings(sampled, 2).do_sample, match.settings(greedy, 2).do_sample) == (True, False)
    assert match.settings(greedy, 2).max_length == 9


@pytest.mark.parametrize(
    ("coupling", "seed", "error"),
    [
        ("ratio", None, "`coupling` must be 'reject' or 'match', got 'ratio'"),
        ("reject", 1, "`seed` belongs to `coupling='match'`"),
        (None, 0, "`seed` belongs to `coupling='match'`"),
        ("match", None, "`coupling='match'` needs a `seed`"),
    ],
)
def test_a_seed_goes_with_shared_noise(coupling: str | None, seed: int | None, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Request.read(coupling, seed, None, None, {})
    assert Request.read("".join(["ma", "tch"]), 0, None, None, {}).seed == 0  # a string of the caller's making
