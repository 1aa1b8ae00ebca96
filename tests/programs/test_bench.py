"""The benchmark: what it measures, and that it counts right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from commands import WHO, invoke

from hf_eft import tiny
from hf_eft.programs.bench import bench


def test_bench() -> None:
    done = invoke("bench", WHO, "--new-tokens", "4", "--rounds", "2", "--json")
    measured = json.loads(done.stdout)
    assert list(measured["systems"]) == ["base", "tuned", "reference", "combination", "speculative"]
    assert (measured["batch"], measured["new_tokens"], measured["rounds"]) == (1, 4, 2)
    for name, system in measured["systems"].items():
        low, high = system["tokens_per_second"]["quartiles"]
        assert low <= system["tokens_per_second"]["median"] <= high
        assert ("over_combination" in system) == (name != "combination") and ("over_base" in system) == (name != "base")
    assert "tokens_per_round" in measured["systems"]["speculative"]
    assert "speculative" in invoke("bench", "--new-tokens", "2", "--rounds", "2").stdout


def test_bench_counts_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that are set: each system takes as many as its turn in a round, which doubles from round to round."""
    from hf_eft import EFTForCausalLM

    times: list[float] = []

    def seconds(call: Any) -> float:
        call()
        times.append((len(times) % 4 + 1) * (len(times) // 4 + 1))
        return times[-1]

    monkeypatch.setattr("hf_eft.programs.timing.seconds", seconds)
    family = tiny.load()
    model = EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.base)
    inputs = family.tokenizer([WHO, WHO], return_tensors="pt", return_token_type_ids=False)
    done: list[str] = []
    measured = bench(model, inputs, new_tokens=3, rounds=3, done=done.append)
    order = ["base", "tuned", "combination", "speculative"]  # base and reference are one model
    assert done == order * 4 and list(measured["systems"]) == order
    assert measured["batch"] == 2
    for turn, name in enumerate(order, start=1):
        system = measured["systems"][name]
        assert system["tokens_per_second"]["median"] == pytest.approx(2 * 3 / (2 * turn), abs=0.01)
        if name != "combination":
            assert system["over_combination"]["median"] == pytest.approx(3 / turn, abs=1e-3)
        if name != "base":
            assert system["over_base"]["median"] == pytest.approx(1 / turn, abs=1e-3)
    with pytest.raises(ValueError, match="2 rounds or more"):
        bench(model, inputs, rounds=1)
