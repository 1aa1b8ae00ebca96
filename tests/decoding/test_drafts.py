"""How far is drafted, what it is taken to cost, and what is remembered of questions that were asked."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import build, prompts, shared

from hf_eft import EFTForCausalLM
from hf_eft.decoding.reader import Reader
from hf_eft.decoding.speculative.accounts import Accounts
from hf_eft.decoding.speculative.ahead import Draft
from hf_eft.decoding.speculative.clock import Clock
from hf_eft.decoding.speculative.coupling import Noise
from hf_eft.decoding.speculative.rows import Rows
from hf_eft.decoding.speculative.scoring import Scoring
from hf_eft.members.members import Members


@pytest.mark.parametrize("rows", ["one", "even"])
def test_drafting_stops_where_no_row_is_sure(rows: str) -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    options: dict[str, Any] = {"max_new_tokens": 7, "eos_token_id": None}
    plain = model.generate(**prompts(rows), **options)
    how = {"assistant_model": model.tuned, "num_assistant_tokens": 4}
    for threshold, block in ((1e-9, 4), (0.99999, 1)):  # any token is sure enough, and none
        got = model.generate(**prompts(rows), **options, **how, assistant_confidence_threshold=threshold)
        assert torch.equal(got, plain) and model.speculation.blocks[0] == block


@pytest.mark.parametrize("read_all", [False, True])
@pytest.mark.parametrize("costs", [False, True])
def test_the_clock_s_seconds_are_the_drafters_or_the_others(costs: bool, read_all: bool) -> None:
    """Drafting, verifying, the drafter's last step, and the rest of a round: 1.5, 3.5, 0.5 and 2 seconds."""
    learnt: list[tuple[Any, ...]] = []
    schedule: Any = SimpleNamespace(learns=True, record=lambda *given: learnt.append(given))
    drafter: Any = SimpleNamespace(name="tuned", costs=costs)
    draft, accounts = Draft(drafter, []), Accounts([drafter], schedule)
    accounts.add(draft, 3, [3, 1], {}, clock(1.5, 3.5, 0.5, 2.0), read_all)
    step = (1.5 + 0.5) / (4 if read_all else 3) if costs else 0.0
    agreed = [[1.0, 1.0, 1.0, 1.0, 0.0]]
    assert learnt == [(0, 3, [3, 1], agreed, step, 3.5 + 2.0)]
    report = accounts.report
    assert (report.rounds, report.bonus_steps, report.drafting, report.verifying) == (1, int(read_all), 2.0, 5.5)
    assert (report.blocks, report.drafted, report.accepted) == ([3], [2, 2, 1], [2, 1, 1])
    accounts.add(draft, 0, [0, 0], {}, clock(0.0, 4.0, 0.0, 0.5), False)
    assert learnt[-1][-2:] == (0.0, 4.5)
    draft.is_ahead = True  # its time is that of the look before
    accounts.add(draft, 3, [3, 1], {}, clock(0.1, 3.5, 0.0, 2.0), False)
    assert learnt[-1][-2:] == (0.0, 5.5) and report.ahead == 1


def clock(*seconds: float, waits: bool = False, asked: Any = None) -> Any:
    return SimpleNamespace(waits=waits, seconds=lambda: [*seconds, *(asked() or () if asked else ())])


@pytest.mark.parametrize("learns", [False, True])
def test_times_that_are_waited_for_are_asked_later(learns: bool) -> None:
    """What does not go by times is told at once: the next block may depend on it."""
    happened: list[str] = []
    schedule: Any = SimpleNamespace(learns=learns, record=lambda *given: happened.append("record"))
    drafter: Any = SimpleNamespace(name="tuned", costs=True)
    accounts = Accounts([drafter], schedule)
    slow = clock(1.0, 1.0, 1.0, 1.0, waits=True, asked=lambda: happened.append("waited"))
    accounts.add(Draft(drafter, []), 3, [3], {}, slow, False)
    assert happened == ([] if learns else ["record"]) and accounts.report.rounds == 1
    accounts.settle()
    accounts.settle()
    assert happened == (["waited", "record"] if learns else ["record", "waited"])
    assert accounts.report.drafting == accounts.report.verifying == 2.0


@pytest.mark.parametrize("block", [None, 3])
def test_nothing_waits_for_times_between_looks(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator: they are asked directly behind a look, when all is over that they are of."""
    happened: list[str] = []
    look, seconds = Scoring.look, Clock.seconds
    monkeypatch.setattr(Clock, "waits", True)
    monkeypatch.setattr(Clock, "lap", lambda self: self._laps.append(time.perf_counter()))
    monkeypatch.setattr(Clock, "_measured", lambda self: [b - a for a, b in zip(self._laps, self._laps[1:], strict=False)])
    monkeypatch.setattr(Scoring, "look", lambda self, *values: happened.append("look") or look(self, *values))
    monkeypatch.setattr(Clock, "seconds", lambda self: happened.append("times") or seconds(self))
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    options: dict[str, Any] = {"max_new_tokens": 12, "eos_token_id": None}
    expected = model.generate(**prompts("left"), **options)
    got = model.generate(**prompts("left"), **options, assistant_model=model.tuned, num_assistant_tokens=block)
    report = model.speculation
    assert torch.equal(got, expected) and report is not None and report.verifying > 0
    assert happened.count("times") == report.rounds and happened[-1] == "times"  # the last round's, when all is over
    assert all(before == "look" for before, each in pairwise(happened[:-1]) if each == "times")


@pytest.mark.parametrize(("rows", "kept"), [(1, 32), (12, 2), (16, 2), (40, 1)])
@torch.no_grad()
def test_a_reader_remembers_so_many_answers(rows: int, kept: int) -> None:
    reader = Reader(Members({"tuned": shared("gpt2", 1)}))
    ids = torch.randint(3, 64, (rows, 36), generator=torch.Generator().manual_seed(0))
    for length in range(2, 37):
        reader.read(ids[:, :length], None)
    assert sorted(reader._answers) == list(range(37 - kept, 37))


@pytest.mark.parametrize("family", ["mistral", "mamba2"])
@torch.no_grad()
def test_what_is_recorded_to_be_taken_back_is_bounded(family: str) -> None:
    """After a first roll-back, windows are recorded and recurrent states are marked: not for the rest of a long text."""
    model = shared(family, 1)
    reader = Reader(Members({"tuned": model}))
    ids = torch.randint(3, 64, (1, 110), generator=torch.Generator().manual_seed(0))
    reader.read(ids[:, :12], None)
    reader.read(torch.cat([ids[:, :10], ids[:, 50:52]], dim=1), None)
    unsettled, marked = [], []
    for length in range(11, 111):
        answer = reader.read(ids[:, :length], None)
        unsettled.append(reader._cache.unsettled_tokens if reader._cache is not None else 0)
        marked += [length - at for at, _ in reader._marks]
    assert 60 < max(unsettled) < 70 and max(marked, default=0) < 140
    # What lies before the recording is not taken back: the text is read again.
    for length, given in ((110, answer), (15, reader.read(ids[:, :15], None))):
        expected = model(ids[:, :length], use_cache=False).logits[:, -1]
        torch.testing.assert_close(given["tuned"][:, -1], expected, atol=1e-3, rtol=1e-3)


def test_a_prompt_is_answered_several_times_with_drafts_too() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    options: dict[str, Any] = {
        "max_new_tokens": 6,
        "do_sample": True,
        "num_return_sequences": 2,
        "coupling": "match",
        "seed": 3,
    }
    plain = model.generate(**prompts("even"), **options)
    assert plain.shape[0] == 4 and len(set(map(tuple, plain.tolist()))) > 2
    assert torch.equal(model.generate(**prompts("even"), **options, assistant_model=model.tuned), plain)


def test_the_first_token_has_the_noise_of_the_first_position() -> None:
    model = EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("llama", 1), reference=shared("llama", 2))
    ids = prompts("even")["input_ids"]
    with torch.no_grad():
        scores = model(ids).logits[:, -1]
    for extra in ({}, {"assistant_model": model.tuned}):
        out = model.generate(ids, max_new_tokens=1, do_sample=True, top_k=0, coupling="match", seed=5, **extra)
        assert torch.equal(out[:, -1], Noise(5).pick(scores, [0] * len(ids)))


@pytest.mark.parametrize(
    "do_sample, confidence, processors, scheduled, by_row, expected",
    [
        (False, None, [], False, False, True),
        (False, 0.0, [], False, False, True),
        (True, None, [], False, False, False),
        (False, 0.4, [], False, False, False),
        (False, None, ["one"], False, False, False),
        (False, None, [], True, False, False),
        (False, None, [], True, True, True),  # coefficients of the call come before the recipe's
    ],
)
def test_when_a_draft_needs_nothing_but_logits(
    do_sample: bool, confidence: float | None, processors: list[str], scheduled: bool, by_row: bool, expected: bool
) -> None:
    settings: Any = SimpleNamespace(do_sample=do_sample, confidence=confidence, noise=None, max_length=9)
    recipe: Any = SimpleNamespace(scheduled=scheduled)
    rows = Rows(torch.zeros(2, 3, dtype=torch.long), room=2)
    coefficients = torch.ones(2, 3) if by_row else None
    assert Scoring(SimpleNamespace(), recipe, settings, rows, coefficients, processors).is_plain is expected  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["tuned", "reference"])
@pytest.mark.parametrize("sampling", [False, True])
def test_what_is_not_finite_while_drafting_is_named(which: str, sampling: bool) -> None:
    """The prompt is read well; the third step of a member is not."""
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=build("llama", 1), reference=build("llama", 2))
    steps = []

    def spoil(module: Any, given: Any, output: Any) -> None:
        steps.append(1)
        if len(steps) > 2:
            output.logits[0, -1, 3] = torch.nan

    model.members[which].register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match=f"The member '{which}' returned logits that are no distribution"):
        model.generate(
            **prompts("one"), max_new_tokens=12, do_sample=sampling, assistant_model=model.tuned, num_assistant_tokens=2
        )
    assert len(steps) >= 3
