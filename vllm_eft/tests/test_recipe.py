"""What requests may say, without torch or vLLM."""

from __future__ import annotations

from typing import Any

import pytest
from vllm_eft.recipe import Recipe

PAIR = Recipe(("base", "tuned", "reference"), {}, {"base": 1.0, "tuned": 1.0, "reference": -1.0})
SEVERAL = Recipe(("base", "helpful", "brief", "reference"), {}, {"base": 1.0, "helpful": 0.7, "brief": 0.3, "reference": -1.0})
SHARED = Recipe(("base", "tuned", "reference"), {"reference": "base"}, {"base": 1.0, "tuned": 1.0, "reference": -1.0})


@pytest.mark.parametrize(
    ("recipe", "extra", "rows"),
    [
        (PAIR, None, None),
        (PAIR, {"other": 1}, None),  # of somebody else's processor
        (PAIR, {"alpha": 0.5}, [[1.0, 0.5, -0.5]]),
        (PAIR, {"alpha": 0}, [[1.0, 0.0, 0.0]]),
        (PAIR, {"beta": 2}, [[2.0, 1.0, -2.0]]),
        (PAIR, {"alpha": [0.0, 1.0]}, [[1.0, 0.0, 0.0], [1.0, 1.0, -1.0]]),
        (PAIR, {"weights": [0.5]}, [[1.0, 0.5, -0.5]]),
        (PAIR, {"coefficients": [2, 1, 0.5]}, [[2.0, 1.0, 0.5]]),
        (PAIR, {"coefficients": {"tuned": 1.0}}, [[0.0, 1.0, 0.0]]),
        (SEVERAL, {"weights": {"brief": 1.0}}, [[1.0, 0.0, 1.0, -1.0]]),
        (SEVERAL, {"weights": [0.5, [0.0, 1.0]]}, [[1.0, 0.5, 0.0, -0.5], [1.0, 0.5, 1.0, -1.5]]),
        (SHARED, {"alpha": 0.25}, [[0.75, 0.25]]),
        (Recipe(("tuned", "reference"), {}, {"tuned": 1.5, "reference": -0.5}), {"weights": [0.5]}, [[0.5, 0.5]]),
        (Recipe(("a", "b"), {}, {"a": 0.5, "b": 0.5}), {"weights": [0.1, 0.9]}, [[0.1, 0.9]]),
    ],
)
def test_what_is_asked_for_is_a_row_for_each_model(recipe: Recipe, extra: Any, rows: Any) -> None:
    asked = recipe.asked(extra)
    assert asked == (None if rows is None else [pytest.approx(row) for row in rows])


@pytest.mark.parametrize(
    ("recipe", "extra", "reason"),
    [
        (PAIR, {"alpha": True}, "finite number"),
        (PAIR, {"alpha": "0.5"}, "finite number"),
        (PAIR, {"alpha": []}, "finite number"),
        (PAIR, {"beta": float("inf")}, "finite number"),
        (PAIR, {"alpha": 1, "coefficients": [1, 1, 1]}, "not both alpha and coefficients"),
        (PAIR, {"coefficients": [1, 1]}, "a number for each of base, tuned, reference, got 2"),
        (PAIR, {"coefficients": "1,1,1"}, "it is '1,1,1'"),
        (PAIR, {"weights": {"base": 1.0}}, "names 'base'"),
        (PAIR, {"weights": [float("nan")]}, "finite number"),
        (SEVERAL, {"alpha": 1.0}, "for a base, one tuned member and a reference"),
        (SHARED, {"coefficients": {"base": 1.0, "reference": -1.0}}, "no member with a say"),
    ],
)
def test_what_cannot_be_is_refused_by_name(recipe: Recipe, extra: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        recipe.asked(extra)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"coefficients": {"base": "much"}}, "must be a finite number"),
        ({"coefficients": {"other": 1.0}}, "names 'other'"),
        ({"truncation": {"rule": "some", "p": 0.5}}, "`rule` of keep, drop"),
        ({"truncation": {"rule": "keep", "p": 0}}, "`p` in"),
        ({"names": ("base", "a", "b", "reference"), "truncation": {"rule": "keep", "p": 0.5}}, "one tuned member"),
        (
            {"names": ("tuned", "reference"), "coefficients": {"tuned": 1.0}, "truncation": {"rule": "base", "p": 0.5}},
            "has? not|have not",
        ),
    ],
)
def test_a_folders_recipe_is_checked(more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Recipe(**{"names": ("base", "tuned", "reference"), "shared": {}, "coefficients": {"base": 1.0}, **more})
