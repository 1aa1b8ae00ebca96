"""Where a text stands in the phases of a recipe, and how these are described, printed, kept and refused."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from typing import Any

import families
import pytest
from thinking import PLAN, THINK, standing

from hf_eft import Combination, Phase, Truncation
from hf_eft.recipe.phases import OUTSIDE, Markers

OVERLAPPING = [Phase("a", [1, 2], [2, 1], budget=2), Phase("b", [3, 1, 2], [3, 3, 1], budget=0), Phase("c", [2, 2], [1])]


@pytest.mark.parametrize("phases", [[THINK, PLAN], OVERLAPPING, [Phase("a", [1], [2], budget=1)]], ids=["two", "three", "one"])
def test_the_phase_of_every_prefix_is_found_token_by_token(phases: list[Phase]) -> None:
    rng, markers, seen, ended = random.Random(4), Markers(phases), set(), 0
    for _ in range(400):
        row = [rng.randrange(1, 8 if phases[0] is THINK else 4) for _ in range(rng.randrange(1, 30))]
        state = OUTSIDE
        for i, token in enumerate(row):
            state = markers.after(state, token)
            phase, must = standing(row[: i + 1], phases)
            assert markers.names[state.phase] == phase and markers.certain(state) == (-1 if must is None else must), row[
                : i + 1
            ]
            seen.add(phase)
            ended += must is not None
    assert seen == {"answer", *(phase.name for phase in phases)} and ended > 100


def test_a_budget_is_kept_to_the_token_and_what_is_written_of_the_end_is_not_written_again() -> None:
    markers = Markers([Phase("think", [5], [6, 7], budget=3)])

    def certain(*tokens: int) -> int:
        state = OUTSIDE
        for token in tokens:
            state = markers.after(state, token)
        return markers.certain(state)

    assert certain(5, 1, 1) == -1 and certain(5, 1, 1, 1) == 6 and certain(5, 1, 1, 1, 6) == 7
    assert certain(5, 1, 1, 6) == 7 and certain(5, 1, 6) == -1 and certain(5, 1, 6, 1) == 6
    assert (
        certain(5, 1, 1, 1, 6, 7) == -1 and certain(5, 5, 5, 5) == 6
    )  # a marker that begins a phase is a token like others within


def test_markers_are_texts_of_the_tokenizer() -> None:
    tokenizer = families.tokenizer()
    markers = Markers([Phase("think", "w3", "w4 w5")], tokenizer)
    assert markers.starts == [(3,)] and markers.ends == [(4, 5)]
    inside = markers.after(OUTSIDE, 3)
    assert (
        inside.phase == 1 and markers.after(inside, 3).phase == 1 and markers.after(inside, tokenizer.eos_token_id) == OUTSIDE
    )
    shifted = Markers([Phase("think", "w3", "w4 w5")], families.tokenizer(offset=7))
    assert shifted.starts != markers.starts
    with pytest.raises(ValueError, match="does not know the marker '<think>' of the phase 'think'"):
        Markers([Phase()], tokenizer)
    with pytest.raises(ValueError, match="no tokenizer says which tokens"):
        Markers([Phase()])


def test_tokens_are_saved_with_their_spelling_and_refused_by_another_tokenizer() -> None:
    recipe = Combination.emulate(alpha={"think": 1, "answer": 0}, phases=[Phase("think", [3], "w4", budget=2)])
    kept = Combination.from_dict(json.loads(json.dumps(recipe.spelled({"base": families.tokenizer()}).to_dict())))
    assert kept.phases[0].spelled == (("w3",), ())
    assert Markers(kept.phases, families.tokenizer()).starts == [(3,)]
    with pytest.raises(ValueError, match=r"tokens \[3\] of the phase 'think' were \['w3'\] .* and are \['w10'\]"):
        Markers(kept.phases, families.tokenizer(offset=7))
    assert recipe.spelled({}) == recipe


def test_coefficients_by_phase() -> None:
    recipe = Combination.emulate(alpha={"think": 1.2, "answer": 0.6})
    assert recipe.phased and not recipe.scheduled and not recipe.budgeted
    names = ("base", "tuned", "reference")
    assert recipe.at([0, 9], names, "think").tolist() == recipe.at([0, 9], names, "think").tolist()
    assert recipe.at([0], names, "think")[0].tolist() == pytest.approx([1, 1.2, -1.2])
    assert recipe.at([5], names)[0].tolist() == pytest.approx([1, 0.6, -0.6])
    assert {phase: row[0].tolist() for phase, row in recipe.row(names).items()} == {
        "answer": pytest.approx([1, 0.6, -0.6]), "think": pytest.approx([1, 1.2, -1.2])
    }  # fmt: skip
    assert str(recipe) == (
        "base + (think: 1.2, answer: 0.6) tuned + (think: -1.2, answer: -0.6) reference, think: '<think>' to '</think>'"
    )
    steer = Combination.steer({"a": {"think": 1.0, "answer": 0.0}, "b": 0.5})
    assert dict(steer.coefficients["reference"]) == {"think": -1.5, "answer": -0.5}
    assert dict(Combination.interpolate({"think": 2, "answer": 1}).coefficients["reference"]) == {"think": -1.0, "answer": 0.0}
    assert dict(Combination.contrast({"think": 1, "answer": 0}).coefficients["base"]) == {"think": 2.0, "answer": 1.0}
    mixed = Combination.mix({"a": {"think": 1.0, "answer": 0.25}, "b": {"think": 0.0, "answer": 0.75}})
    assert mixed.phased
    with_all = Combination.emulate(
        beta={"x": 2, "answer": 1}, truncation=Truncation("keep", 0.9), phases=[Phase("x", "a", [1, 2], 5)]
    )
    for each in (recipe, steer, mixed, with_all, Combination.emulate(phases=[Phase(budget=3)])):
        assert each == Combination.from_dict(json.loads(json.dumps(each.to_dict()))) == pickle.loads(pickle.dumps(each))
        assert hash(each) == hash(Combination.from_dict(each.to_dict()))
    assert recipe != Combination.emulate(alpha={"think": 1.2, "answer": 0.6}, phases=[Phase(budget=3)])
    assert str(with_all).endswith("of mass 0.9, x: 'a' to [1, 2], 5 tokens at most")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Combination.emulate(alpha={"think": 1}), "must be a number in each of the phases"),
        (lambda: Combination.emulate(alpha={"think": 1, "answer": 1, "plan": 1}), r"phases \['think', 'answer'\]"),
        (lambda: Combination.emulate(alpha={"think": 1, "answer": float("nan")}), "'tuned' must be a finite number, got nan"),
        (lambda: Combination.emulate(alpha={"think": [1.0], "answer": 1}), "'tuned' must be a finite number"),
        (lambda: Combination({"base": {"think": 0, "answer": 1}}), "differ from 0 in the phase 'think'"),
        (lambda: Combination.emulate(alpha={}), "must be a finite number"),
        (lambda: Combination.mix({"a": {"think": 1, "answer": 0.5}}), "must sum to 1"),
        (lambda: Combination.steer({"a": {"think": 1, "answer": 0}, "b": {"x": 1}}), "must name the same phases"),
        (lambda: Combination.emulate(phases=[Phase(), Phase(start="x")]), "Two phases are called 'think'"),
        (lambda: Combination.emulate(phases=[Phase(), Phase("other")]), "Two phases begin with '<think>'"),
        (lambda: Phase("answer"), "identifier other than 'answer'"),
        (lambda: Phase("a b"), "identifier"),
        (lambda: Phase(start=""), "`start` of the phase 'think' must be a text or a list of tokens"),
        (lambda: Phase(end=[1, -1]), "`end` of the phase 'think'"),
        (lambda: Phase(end=[True]), "`end` of the phase 'think'"),
        (lambda: Phase(start="x", end="x"), "begins and ends with 'x'"),
        (lambda: Phase(budget=-1), "must be a number of tokens, got -1"),
        (lambda: Phase(budget=1.5), "must be a number of tokens, got 1.5"),
        (lambda: Phase(spelled=["x"]), "must be the tokens of its two markers"),
        (lambda: Combination.from_dict({"coefficients": {"base": 1}, "phases": {"name": "x"}}), "must be a list"),
        (lambda: Combination.from_dict({"coefficients": {"base": 1}, "phases": [{"name": "x"}]}), "must have `name`, `start` and"),
        (lambda: Combination.from_dict({"coefficients": {"base": 1}, "phases": [{**Phase().to_dict(), "z": 1}]}), "must have"),
        (lambda: Combination.emulate(alpha={"think": 1, "answer": 0}).coefficient("tuned"), "'tuned' is by phase"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_with_phases(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
