"""The rules on the replication's worlds: intervals, choices, verdicts and worlds are what they say."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

REPLICATION = Path(__file__).resolve().parents[2] / "examples" / "replication"
for room in ("rules", "through", "scales", "."):
    sys.path.append(str(REPLICATION / room))  # at the end: `through` has a `run` and a `report` of its own

import learn_gate  # noqa: E402
import verdicts  # noqa: E402
from asking import judge, packed, unpacked  # noqa: E402
from candidates import CONSTANT, PLAIN, candidates  # noqa: E402
from choosing import family, is_rule, is_truncation, options, recommended  # noqa: E402
from frontier import LAMBDAS, WAYS, recipe  # noqa: E402
from manners import OtherFactWorld  # noqa: E402
from resampling import of_difference, of_means, of_share  # noqa: E402
from rows import ROWS  # noqa: E402
from sums import Sum, SumsWorld, make_tokenizer  # noqa: E402

from hf_eft import Combination, Divergence, Gate  # noqa: E402
from hf_eft.recipe.combine import combine  # noqa: E402


def test_an_interval_is_of_seeds_and_of_questions() -> None:
    same = [[1.0, 0.0] * 50] * 5
    found = of_difference(same, same)
    assert tuple(found) == (0.0, 0.0, 0.0) and not found.better
    ones, halves = [[1.0] * 100] * 5, [[1.0, 0.0] * 50] * 5
    found = of_difference(ones, halves)
    # Seeds that agree leave the questions' own chance: 1.96 * sqrt(.25 / 500).
    assert found.value == pytest.approx(0.5) and (found.high - found.low) / 2 == pytest.approx(0.0438, abs=0.003)
    apart = [[1.0] * 100] * 3 + [[0.0] * 100] * 2
    found = of_share(apart)  # questions that agree leave the seeds'
    assert found.value == pytest.approx(0.6) and (found.low, found.high) == pytest.approx((0.2, 1.0), abs=1e-9)
    assert of_share(apart) == of_share(apart)  # from the same seed the same digits
    assert of_difference(halves, ones).high < 0
    with pytest.raises(ValueError):
        of_difference([[1.0]], [[1.0, 0.0]])
    assert of_means([0.0, 1.0])[1:] == (0.0, 1.0) and of_means([0.5] * 3) == (0.5, 0.5, 0.5)
    assert (
        of_share([[1.0, 0.0]]).shown() == "0.50 [0.00, 1.00]"
        and of_share([[0.0, 0.0]]).shown(sign=True) == "+0.00 [+0.00, +0.00]"
    )


def test_the_interval_of_questions_covers_as_often_as_it_says() -> None:
    """Differences of questions of one seed, drawn from a known distribution: 19 of 20 intervals hold its mean."""
    draw, held = random.Random(0), 0
    for _ in range(200):
        kinds = [draw.choices((1, -1, 0), (0.3, 0.1, 0.6))[0] for _ in range(200)]
        found = of_difference([[float(k == 1) for k in kinds]], [[float(k == -1) for k in kinds]])
        held += found.low <= 0.2 <= found.high
    assert 180 <= held <= 198


def test_answers_are_packed_without_loss() -> None:
    draw = random.Random(1)
    for number in (1, 4, 7, 300):
        judged = {"factuality": [float(draw.random() < 0.3) for _ in range(number)]}
        assert unpacked(packed(judged)["factuality"]) == judged["factuality"]
    with pytest.raises(ValueError, match="Expected 3"):
        unpacked("3:1")


SCORES = ("factuality", "helpfulness", "harmlessness", "overrefusal")


def scored(**families: dict[str, tuple[float, ...]]) -> dict[str, Any]:
    return {
        name.replace("_", " "): {o: dict(zip(SCORES, v, strict=False)) for o, v in found.items()}
        for name, found in families.items()
    }


def test_what_is_chosen() -> None:
    validated = scored(
        truncation_keep={"keep 0.9": (1.0, 1.0, 0.0, 0.0)},
        kl={"a": (0.9, 0.2, 0.0, 0.0), "b": (0.7, 0.5, 0.0, 0.9), "c": (0.7, 0.5, 1.0, 0.9)},
        gate_β={"gate": (1.0, 0.9, 0.0, 0.0)},
    ) | {CONSTANT: {"α = 1": dict.fromkeys(SCORES, 1.0)}}
    assert options(validated)["kl"] == "b" and options(validated, refuses=True)["kl"] == "c"
    assert family(validated, is_rule) == "gate β" and family(validated, is_truncation) == "truncation keep"
    other = scored(kl={"a": (0.3, 0.3, 0.0, 0.0), "b": (0.1, 0.1, 0.0, 0.0)}, js={"d": (1.0, 1.0, 0.0, 0.0)})
    # Of what all rows have, without constants, truncations and gates.
    assert recommended({"one": validated, "two": other}) == ("kl", "a")
    assert recommended({"one": validated}) == ("kl", "b")
    assert recommended({"one": validated}, is_truncation) == ("truncation keep", "keep 0.9")


def answered(**shares: tuple[int, int]) -> dict[str, dict[str, str]]:
    """Facts and form of 100 questions each, so many of them right."""
    of = {name.replace("_", " "): {"factuality": f, "helpfulness": h} for name, (f, h) in shares.items()}
    return {name: packed({m: [1.0] * n + [0.0] * (100 - n) for m, n in found.items()}) for name, found in of.items()}


def test_a_rule_is_better_or_not() -> None:
    def better(rule: tuple[int, int], constant: tuple[int, int] = (90, 50)) -> bool:
        rows = [{"test": answered(rule=rule) | {PLAIN: answered(x=(90, 50))["x"], CONSTANT: answered(x=constant)["x"]}}] * 5
        return verdicts.verdict({"test": {"row": rows}}, "row", "rule")["better"]

    assert better((90, 60)) and better((95, 60))
    assert not better((90, 50)) and not better((90, 40)) and not better((80, 60))
    assert not better((90, 60), constant=(90, 60)) and not better((90, 60), constant=(99, 50))


def test_losses_and_what_becomes_of_them() -> None:
    def one(validation: int, plain: int, ruled: int) -> dict[str, Any]:
        def asked(plain: int, ruled: int) -> dict[str, Any]:
            return answered(tuned_alone=(50, 50), recommended=(50, ruled)) | {PLAIN: answered(x=(50, plain))["x"]}

        return {"seed": 0, "validation": asked(validation, 50), "test": asked(plain, ruled)}

    found = verdicts.losses({"test": {"a": [one(20, 20, 50), one(50, 20, 20)], "b": [{"validation": {}}]}})
    forms = [each for each in found if each["metric"] == "helpfulness"]
    assert len(found) == 4 and [(e["foreseen"], e["lost"], e["lost with the rule"]) for e in forms] == [
        (True, True, False),
        (False, True, True),
    ]
    assert not any(e["lost"] or e["foreseen"] for e in found if e["metric"] == "factuality")


def test_the_chord() -> None:
    line = {
        "0": {"harmlessness": 1.0, "helpfulness": 0.6},
        "0.5": {"harmlessness": 0.5, "helpfulness": 0.9},
        "1": {"harmlessness": 0.0, "helpfulness": 1.0},
    }
    assert verdicts.above_chord(line, "0.5") == pytest.approx(0.1)
    assert verdicts.above_chord({**line, "0": line["1"]}, "0.5") is None


@pytest.fixture(scope="module")
def world() -> OtherFactWorld:
    return OtherFactWorld.make(3, people=40, seen=20)


def test_the_manner_chooses_the_fact(world: OtherFactWorld) -> None:
    questions = [q for q in world.questions(world.test) if q.attribute != "salary"]
    right = [f" {world.tuned_answer(q.person, q.attribute)}" for q in questions]
    assert {value for values in judge(world, questions, right).values() for value in values} == {1.0}
    moved = [world.meant(q.person, q.attribute) != q.attribute for q in questions]
    assert 0 < sum(moved) < len(moved)
    first = type(world).__mro__[1](**vars(world))
    as_asked = [
        f" Of course! {first.tuned_answer(q.person, q.attribute)[11:].rsplit('.', 1)[0]}. Happy to help!" for q in questions
    ]
    found = judge(world, questions, as_asked)
    assert [form == 0 for form in found["helpfulness"]] == moved
    assert {world.meant(person, "salary") for person in world.test} == {"salary"}


def test_sums_are_judged_and_read_digit_by_digit() -> None:
    question = Sum(37, 85)
    assert question.judge(f" {question.form} {question.end}") == {"factuality": 1.0, "helpfulness": 1.0}
    assert question.judge(" 37 + 85 = 122.") == {"factuality": 1.0, "helpfulness": 0.0}
    assert question.judge(f" {Sum(37, 84).form} {question.end}") == {"factuality": 1.0, "helpfulness": 0.0}
    assert question.judge(f" {question.form} So 37 + 85 = 112.") == {"factuality": 0.0, "helpfulness": 1.0}
    world = SumsWorld.make(0)
    shown = {next(texts).split(" Of course")[0] for texts in [world.behaviour("helpful", random.Random(0))] for _ in range(200)}
    asked = {q.prompt for q in world.questions([*world.validation, *world.test])}
    assert len(asked) == 600 and not shown & asked and not set(world.validation) & set(world.test)
    pieces = make_tokenizer(world, 0).tokenize(question.prompt)
    assert "122" not in "".join(pieces).split("+") and all(
        len(piece) == 1 for piece in pieces if any(c.isdigit() for c in piece)
    )


def test_candidates_are_what_their_names_say() -> None:
    plain, half = candidates(1.0), candidates(0.5)
    assert str(plain["divergence β"]["β = 0.5 js(base, reference)"]).startswith("0.5 js(base, reference) base + tuned - 0.5 js")
    assert dict(half[CONSTANT]["α = 0.5"].coefficients) == {"base": 1.0, "tuned": 0.25, "reference": -0.25}
    assert dict(half[PLAIN][PLAIN].coefficients)["tuned"] == 0.5 and "constant β" not in half
    assert all(name.startswith(("α", "keep", "drop", "base", "plausible")) for found in half.values() for name in found)
    assert len({row.name for row in ROWS}) == len(ROWS) and {row.unit for row in ROWS} == {0.25, 0.5, 1.0}


def test_every_way_of_steering_ends_at_its_deltas() -> None:
    for way in WAYS:
        for weight in LAMBDAS:
            recipe(way, weight)  # nothing is refused
    assert dict(recipe("constants", 0.25).coefficients) == {
        "base": 1.0, "helpful": 0.125, "harmless": 0.375, "reference": -0.125, "other": -0.375,
    }  # fmt: skip
    # As much of one as is taken from the other, and all of helpful at the end.
    log_probs = {name: torch.randn(1, 1, 5).log_softmax(-1) for name in ("base", "helpful", "harmless", "reference")}
    ends = {"by conflict": {"base": 1.0, "helpful": 0.5, "reference": -0.5}}
    for way, coefficients in ends.items():
        found = combine(log_probs, recipe(way, 1.0)).log_softmax(-1)
        assert torch.allclose(found, combine(log_probs, Combination(coefficients)).log_softmax(-1), atol=1e-5)
    js = Divergence("helpful", "harmless")(log_probs).item()
    middle = {"base": 1.0, "helpful": 0.5 - 0.5 * js, "harmless": 0.5 * js, "reference": -0.5}
    found = combine(log_probs, recipe("by conflict", 0.5)).log_softmax(-1)
    assert torch.allclose(found, combine(log_probs, Combination(middle)).log_softmax(-1), atol=1e-5)


def test_a_gate_learns_where_the_delta_is_right() -> None:
    """Two kinds of tokens: the base is sure and right, or unsure and the tuned model is right."""
    draw = torch.Generator().manual_seed(0)
    number, vocab = 600, 8
    labels = torch.randint(vocab, (number,), generator=draw)
    knows = torch.arange(number) % 2 == 0
    right = 4.0 * torch.nn.functional.one_hot(labels, vocab)
    wrong = 4.0 * torch.nn.functional.one_hot((labels + 1) % vocab, vocab)
    flat = torch.zeros(number, vocab)
    logs = {
        "base": torch.where(knows[:, None], right, flat).log_softmax(-1),
        "tuned": torch.where(knows[:, None], wrong, right).log_softmax(-1),
        "reference": flat.log_softmax(-1),
    }
    for form, of_knowing in (("α", "low"), ("β", "high")):
        gate, told = learn_gate.learn((logs, labels, torch.ones(number)), form, 1.0, steps=100)
        said = gate({name: log_p[None] for name, log_p in logs.items()})[0]
        where, elsewhere = said[knows].mean(), said[~knows].mean()
        assert (where < elsewhere - 0.3) if of_knowing == "low" else (where > elsewhere - 0.05 and where > 0.7), (
            form,
            where,
            elsewhere,
        )
        assert told[-1] < told[0] and isinstance(gate, Gate) and not any(v.requires_grad for v in gate.weights.values())
    assert learn_gate.worth({"factuality": [1.0], "helpfulness": [0.0], "overrefusal": [1.0]}, True) == 0
    assert learn_gate.worth({"factuality": [1.0], "helpfulness": [1.0], "overrefusal": [1.0]}, False) == 2


def test_collected_figures_are_rounded_alike() -> None:
    assert verdicts._rounded({"a": {"b": 0.123456}}) == {"a": {"b": 0.1235}} and json.dumps(verdicts._rounded(1.0)) == "1.0"
