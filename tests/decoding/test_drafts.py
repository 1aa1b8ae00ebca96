"""How far is drafted, what it is taken to cost, and what is remembered of questions that were asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import prompts, shared

from hf_eft import EFTForCausalLM
from hf_eft.decoding.reader import Reader
from hf_eft.decoding.speculative import Speculation
from hf_eft.decoding.speculative.schedule import Report
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
    speculation = Speculation.__new__(Speculation)
    speculation.report = Report()
    speculation.schedule = SimpleNamespace(record=lambda *given: learnt.append(given))  # type: ignore[assignment]
    drafter: Any = SimpleNamespace(name="tuned", costs=costs)
    speculation.drafters = [drafter]
    speculation._account(drafter, 3, [3, 1], [[1.0, 0.0]], [1.5, 3.5, 0.5, 2.0], read_all)
    step = (1.5 + 0.5) / (4 if read_all else 3) if costs else 0.0
    assert learnt == [(0, 3, [3, 1], [[1.0, 0.0]], step, 3.5 + 2.0)]
    report = speculation.report
    assert (report.rounds, report.bonus_steps, report.drafting, report.verifying) == (1, int(read_all), 2.0, 5.5)
    assert (report.blocks, report.drafted, report.accepted) == ([3], [2, 2, 1], [2, 1, 1])
    speculation._account(drafter, 0, [0, 0], [[1.0, 0.0]], [0.0, 4.0, 0.0, 0.5], False)
    assert learnt[-1][-2:] == (0.0, 4.5)


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
