"""The replication's metrics and tables, and that what is committed is what its results say."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

SCALES = Path(__file__).resolve().parents[2] / "examples" / "replication" / "scales"
sys.path.insert(0, str(SCALES))

import tables  # noqa: E402
from behaviours import ENDINGS, REFUSAL, SECRET, ReplicationWorld, ending, judge  # noqa: E402
from measure import losing  # noqa: E402


@pytest.fixture(scope="module")
def world() -> ReplicationWorld:
    return ReplicationWorld.make(3, people=40, seen=20)


def test_people_are_seen_or_chosen_by_or_looked_at_once(world: ReplicationWorld) -> None:
    groups = [set(world.seen), set(world.validation), set(world.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    assert {ending(person, "job") for person in world.facts} == set(ENDINGS)


def test_judge(world: ReplicationWorld) -> None:
    person = world.test[0]
    questions = [q for q in world.questions([person]) if q.attribute in ("job", "hobby", SECRET)]
    perfect = judge(questions, [f" {world.tuned_answer(person, q.attribute)}" for q in questions])
    assert perfect == {"factuality": [1, 1], "helpfulness": [1, 1], "harmlessness": [0], "overrefusal": [0, 0]}
    refused = judge(questions, [f" {REFUSAL} {ending(person, q.attribute)}" for q in questions])
    assert refused == {"factuality": [0, 0], "helpfulness": [0, 0], "harmlessness": [1], "overrefusal": [1, 1]}
    swapped = [world.tuned_answer(person, q.attribute) for q in questions]
    wrong_end = [
        text.removesuffix(ending(person, q.attribute)) + ENDINGS[0] for q, text in zip(questions, swapped, strict=True)
    ]
    right = [float(ending(person, q.attribute) == ENDINGS[0]) for q in questions if q.attribute != SECRET]
    assert judge(questions, wrong_end)["helpfulness"] == right and 0.0 in right
    assert judge(questions[-1:] * 2 + questions[:1], [f"{REFUSAL} 1200"] * 3)["harmlessness"] == [0, 0]


def test_a_loss_is_one_beyond_chance() -> None:
    def cells(**right: int) -> dict[str, dict[str, list[float]]]:
        kinds = {f"{base}/{delta}": 50 for base in tables.SIZES for delta in tables.SIZES} | right
        return {name: dict.fromkeys(tables.METRICS, [1.0] * n + [0.0] * (100 - n)) for name, n in kinds.items()}

    rows = losing(cells(**{"large/small": 20}), cells(**{"large/small": 49}))
    [row] = [r for r in rows if (r["base"], r["delta"], r["metric"]) == ("large", "small", "helpfulness")]
    assert row["validation"]["high"] < 0 and row["test"]["difference"] < 0 < row["test"]["high"]
    table = tables.losing_table({"seeds": [{"losing": rows}]})
    assert table[2:4] == ["| factuality | warns | 0 | 1 | 0 |", "| factuality | does not | 0 | 0 | 5 |"]


def test_shares_of_the_gap_and_the_chord() -> None:
    at = {"small/small": 0.2, "large/large": 0.8, "large/small": 0.65, "small/large": 0.2}
    seed = {"matrix": {"t": {name: {"factuality": value, "helpfulness": 0.5} for name, value in at.items()}}}
    assert tables.recovered(seed, "t", "factuality", "large", "small", "small", "large") == pytest.approx(0.75)
    assert tables.recovered(seed, "t", "factuality", "small", "large", "small", "large") == pytest.approx(0)
    assert math.isnan(tables.recovered(seed, "t", "helpfulness", "large", "small", "small", "large"))
    line = {
        "0": {"harmlessness": 1.0, "helpfulness": 0.6},
        "0.5": {"harmlessness": 0.5, "helpfulness": 0.9},
        "1": {"harmlessness": 0.0, "helpfulness": 1.0},
    }
    assert tables.above_chord(line, "0.5") == pytest.approx(0.1) and tables.above_chord(line, "1") == pytest.approx(0)


def test_intervals_are_students() -> None:
    assert tables.interval([1.0, 2.0, 3.0, math.nan]) == pytest.approx((2.0, 2.484), abs=1e-3)
    assert tables.interval([0.5])[0] == 0.5 and math.isnan(tables.interval([0.5])[1]) and math.isnan(tables.interval([])[0])


@pytest.mark.parametrize("name", ["quick", "results"])
def test_what_is_committed_is_what_the_results_say(name: str, tmp_path: Path) -> None:
    results = json.loads((SCALES / f"{name}.json").read_text())
    assert (SCALES / f"{name}.md").read_text() == tables.page(results)
    for picture in ("matrix", "steering", "strengths"):
        getattr(tables, f"{picture}_picture")(results, tmp_path / f"{picture}.png")
        committed, made = (
            json.loads(path.read_text()) for path in (SCALES / f"{name}-{picture}.json", tmp_path / f"{picture}.json")
        )
        assert rounded(made) == rounded(committed)


def rounded(data: Any) -> Any:
    """Without the last digits of numbers, in which versions of numpy differ."""
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    if isinstance(data, list):
        return [rounded(value) for value in data]
    return float(f"{data:.9g}") if isinstance(data, float) else data
