"""The arithmetic, against itself written out."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from vllm_eft.combine import combine, nucleus  # noqa: E402

BASE = torch.tensor([[1.0, 0.0, -1.0, -torch.inf]])
TUNED = torch.tensor([[0.0, 2.0, -torch.inf, 1.0]])
LOGITS = {"base": BASE, "tuned": TUNED}


def test_a_row_is_the_weighted_sum_and_a_model_without_a_say_rules_nothing_out() -> None:
    rows = torch.tensor([[1.0, 0.5], [1.0, 0.0], [0.0, 2.0]])
    total = combine({name: x.expand(3, -1) for name, x in LOGITS.items()}, rows)
    no = -math.inf
    assert total.tolist() == [[1.0, 1.0, no, no], [1.0, 0.0, -1.0, no], [0.0, 4.0, no, 2.0]]


def test_what_two_models_rule_out_stays_out_with_a_negative_coefficient() -> None:
    out = torch.tensor([[0.0, -torch.inf]])
    assert combine({"base": out, "tuned": out}, torch.tensor([[1.0, -1.0]])).tolist() == [[0.0, -math.inf]]
    assert combine({"base": torch.zeros(1, 2), "tuned": out}, torch.tensor([[1.0, -1.0]])).tolist() == [[0.0, -math.inf]]


@pytest.mark.parametrize(
    ("rule", "p", "kept"),
    [("drop", 0.6, [False, True, False, False]), ("drop", 0.8, [False, True, False, True]), ("base", 0.5, [True, False, False, False]),
     ("plausible", 0.3, [True, True, False, False]), ("plausible", 1.0, [True, False, False, False])],
)  # fmt: skip
def test_a_truncation_leaves_the_tokens_of_its_rule(rule: str, p: float, kept: list[bool]) -> None:
    base, tuned = BASE.nan_to_num(neginf=-9.0), TUNED.nan_to_num(neginf=-9.0)
    guide = "tuned" if rule == "drop" else "base"
    total = combine({"base": base, "tuned": tuned}, torch.tensor([[1.0, 0.5]]), rule, p, guide)
    assert total.isfinite().tolist() == [kept]
    wanted = base.log_softmax(-1) + 0.5 * tuned.log_softmax(-1)
    assert torch.equal(total[total.isfinite()], wanted[total.isfinite()])


def test_outside_its_nucleus_the_tuned_model_keeps_its_own() -> None:
    total = combine({"base": BASE, "tuned": TUNED}, torch.tensor([[1.0, 1.0]]), "keep", 0.6, "tuned")
    own = TUNED.log_softmax(-1)
    assert total[0, [0, 2, 3]].tolist() == own[0, [0, 2, 3]].tolist()
    assert float(total[0, 1]) == pytest.approx(float(BASE.log_softmax(-1)[0, 1] + own[0, 1]))


def test_a_nucleus_is_the_smallest_set_with_its_mass_and_never_empty() -> None:
    log_probs = torch.tensor([[0.1, 0.6, 0.3], [0.4, 0.3, 0.3]]).log()
    assert nucleus(log_probs, 0.6).tolist() == [[False, True, False], [True, True, False]]
    assert nucleus(log_probs, 1e-9).sum(-1).tolist() == [1, 1]
