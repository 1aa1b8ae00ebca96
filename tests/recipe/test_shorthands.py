"""A recipe from what a user says: a strength, an amplification, or a weight for each tuned member."""

from __future__ import annotations

from typing import Any

import pytest

from hf_eft import Combination, Truncation
from hf_eft.recipe.shorthands import recipe

THREE = ("base", "tuned", "reference")
FOUR = ("base", "a", "b", "reference")


@pytest.mark.parametrize(
    "names, given, coefficients",
    [
        (THREE, {}, {"base": 1, "tuned": 1, "reference": -1}),
        (THREE, {"alpha": 0.5}, {"base": 1, "tuned": 0.5, "reference": -0.5}),
        (THREE, {"beta": 1.5}, {"base": 1.5, "tuned": 1, "reference": -1.5}),
        (THREE, {"weights": {"tuned": 0.7}}, {"base": 1, "tuned": 0.7, "reference": -0.7}),
        (FOUR, {"weights": {"b": 0.7}}, {"base": 1, "a": 0, "b": 0.7, "reference": -0.7}),
        (("a", "b", "reference"), {"weights": {"a": 0.5, "b": 0.25}}, {"a": 0.5, "b": 0.25, "reference": 0.25}),
        (("a", "b"), {"weights": {"a": 0.75, "b": 0.25}}, {"a": 0.75, "b": 0.25}),
        (("base", "a", "b"), {"weights": {"a": 0.75}}, {"a": 0.75, "b": 0}),
    ],
)
def test_what_is_said_is_the_recipe(names: tuple[str, ...], given: dict[str, Any], coefficients: dict[str, float]) -> None:
    truncation = Truncation("plausible", 0.1) if "base" in coefficients else None
    made = recipe(names, **given, truncation=truncation)
    assert dict(made.coefficients) == pytest.approx(coefficients)
    assert made.truncation == truncation


@pytest.mark.parametrize(
    "names, given, message",
    [
        (THREE, {"alpha": 0.0, "beta": 1.0}, "Give one of alpha, beta and weights, not both alpha and beta"),
        (THREE, {"beta": 1.0, "weights": {}}, "not both beta and weights"),
        (THREE, {"alpha": 1.0, "weights": {"tuned": 1.0}}, "not both alpha and weights"),
        (FOUR, {"alpha": 1.0}, "With the tuned members a, b, say how they are weighted"),
        (FOUR, {"weights": {}}, "With the tuned members a, b, say how they are weighted"),
        (("base", "tuned"), {}, "names 'reference', but the members are 'base', 'tuned'"),
        (("base", "reference"), {}, "names 'tuned', but the members are 'base', 'reference'"),
        (FOUR, {"weights": {"c": 1.0, "base": 1.0}}, "no tuned members 'base', 'c' to weight, but 'a', 'b'"),
    ],
)
def test_what_cannot_be_meant_is_refused(names: tuple[str, ...], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(names, **given)


def test_a_strength_is_of_the_member_that_is_called_tuned() -> None:
    with pytest.raises(ValueError, match="'tuned'"):
        recipe(("base", "helpful", "reference"), alpha=0.5)
    assert recipe(("base", "helpful", "reference"), weights={"helpful": 0.5}) == Combination.steer({"helpful": 0.5})
