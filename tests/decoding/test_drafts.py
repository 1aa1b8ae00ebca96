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
    """Drafting, verifying, the drafter's last step, and the rest of a round: its times end with 11, 12.5, 16, 16.5 and 18.5."""
    learnt: list[tuple[Any, ...]] = []
    speculation = Speculation.__new__(Speculation)
    speculation.report = Report()
    speculation.schedule = SimpleNamespace(record=lambda *given: learnt.append(given))  # type: ignore[assignment]
    speculation.drafter = SimpleNamespace(costs=costs)  # type: ignore[assignment]
    speculation._account(3, [3, 1], [1.0, 0.0], [11.0, 12.5, 16.0, 16.5, 18.5], read_all)
    step = (1.5 + 0.5) / (4 if read_all else 3) if costs else 0.0
    assert learnt == [(3, [3, 1], [1.0, 0.0], step, 3.5 + 2.0)]
    report = speculation.report
    assert (report.rounds, report.bonus_steps, report.drafting, report.verifying) == (1, int(read_all), 2.0, 5.5)
    assert (report.blocks, report.drafted, report.accepted) == ([3], [2, 2, 1], [2, 1, 1])
    speculation._account(0, [0, 0], [1.0, 0.0], [0.0, 0.0, 4.0, 4.0, 4.5], False)
    assert learnt[-1][-2:] == (0.0, 4.5)


@pytest.mark.parametrize(("rows", "kept"), [(1, 32), (12, 2), (16, 2), (40, 1)])
@torch.no_grad()
def test_a_reader_remembers_so_many_answers(rows: int, kept: int) -> None:
    reader = Reader(Members({"tuned": shared("gpt2", 1)}))
    ids = torch.randint(3, 64, (rows, 36), generator=torch.Generator().manual_seed(0))
    for length in range(2, 37):
        reader.read(ids[:, :length], None)
    assert sorted(reader._answers) == list(range(37 - kept, 37))
