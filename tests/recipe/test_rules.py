"""Rules: each equals its formula, whatever the order of tokens; what is no rule is refused."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import pytest
import ruling
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruling import RULES

from hf_eft import Combination, Confidence, Divergence, Entropy, Gate, KLConstrained, Rule, Truncation
from hf_eft.recipe.combine import by_rule, combine, filled
from hf_eft.recipe.rules import measures

NAMES = ("base", "tuned", "reference")
INF = math.inf


def logits(seed: int, *shape: int, scale: float = 2.0, cut: float = 0.0) -> dict[str, torch.Tensor]:
    """Members' logits, some of which rule tokens out, but not all of them."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: scale * torch.randn(*shape, generator=generator) for name in NAMES}
    for values in found.values() if cut else ():
        out = torch.rand(shape, generator=generator) < cut
        out[..., 0] = False
        values.masked_fill_(out, -INF)
    return found


def said(values: dict[str, torch.Tensor], row: int, place: int) -> dict[str, list[float]]:
    return {name: each[row, place].double().softmax(-1).tolist() for name, each in values.items()}


def normalised(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each.log_softmax(-1) for name, each in values.items()}


@pytest.mark.parametrize("cut", [0.0, 0.3], ids=["all", "some ruled out"])
@pytest.mark.parametrize("which", RULES)
def test_each_rule_is_its_formula(which: str, cut: float) -> None:
    rule, says = RULES[which]
    for seed, scale in enumerate((0.05, 1.0, 4.0)):
        values = logits(seed, 3, 4, 9, scale=scale, cut=cut)
        found = rule(normalised(values))
        assert found.shape == (3, 4) and found.dtype == torch.float32
        expected = torch.tensor([[says(said(values, row, place)) for place in range(4)] for row in range(3)])
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("which", RULES)
def test_a_combination_by_rule_is_that_of_the_number_that_it_says(which: str) -> None:
    rule, says = RULES[which]
    values = logits(7, 2, 3, 9)
    recipe = Combination.emulate(alpha=rule)
    combined, spoken = combine(values, recipe), by_rule(values, recipe)
    assert torch.equal(combine(values, recipe, said=spoken), combined)
    rows = filled(torch.full((1, 3, 3), torch.nan), list(values), spoken)
    for row in range(2):
        for place in range(3):
            alpha = says(said(values, row, place))
            one = {name: each[row : row + 1, place : place + 1] for name, each in values.items()}
            expected = combine(one, Combination.emulate(alpha=alpha))[0, 0].log_softmax(-1)
            torch.testing.assert_close(combined[row, place].log_softmax(-1), expected, atol=2e-3, rtol=0)
            assert rows[row, place, 1:].tolist() == pytest.approx([alpha, -alpha], abs=2e-4) and rows[row, place, 0].isnan()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(sorted(RULES)), st.integers(2, 12), st.floats(0.1, 5.0))
def test_the_order_of_tokens_and_constants_change_nothing(seed: int, which: str, vocab: int, scale: float) -> None:
    rule, _ = RULES[which]
    values = logits(seed, 1, 2, vocab, scale=scale)
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    recipe = Combination.emulate(alpha=rule)
    before = combine(values, recipe).log_softmax(-1)
    permuted = combine({name: each[..., order] for name, each in values.items()}, recipe).log_softmax(-1)
    shifted = combine({name: each + 3.0 * i for i, (name, each) in enumerate(values.items())}, recipe).log_softmax(-1)
    if which in ("bet", "unsure"):  # a number may fall on the other side of the edge
        sure = {name: each.softmax(-1).amax(-1) for name, each in values.items()}
        edge = sure["tuned"] - 0.05 if which == "bet" else 0.6
        if bool(((sure["base"] - edge).abs() < 1e-4).any()):
            return
    torch.testing.assert_close(permuted, before[..., order], atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(shifted, before, atol=5e-3, rtol=1e-3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.05, 4.0), st.floats(0.5, 5.0), st.floats(0.1, 6.0))
def test_kl_is_at_its_bound_or_at_its_most(seed: int, bound: float, most: float, scale: float) -> None:
    values = {name: each.double().log_softmax(-1) for name, each in logits(seed, 1, 1, 7, scale=scale).items()}
    alpha = float(KLConstrained(bound=bound, most=most)(values))
    probabilities = {name: each[0, 0].exp().tolist() for name, each in values.items()}
    allowed = bound * ruling.kl(probabilities["tuned"], probabilities["reference"])
    far = ruling.kl(ruling.tilted(probabilities, alpha), probabilities["base"])
    assert 0 <= alpha <= most
    assert far == pytest.approx(allowed, rel=1e-4, abs=1e-9) if alpha < most else far <= allowed * (1 + 1e-6)


def test_worked_examples() -> None:
    even, sure = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.9, 0.1]]]).log()
    # The base leans to the other side: to be moved as far, it takes more than the small model's strength.
    leaning = torch.tensor([[[0.1, 0.9]]]).log()
    alpha = float(KLConstrained(most=5)({"base": leaning, "tuned": sure, "reference": even}))
    assert alpha == pytest.approx(
        ruling.largest({"base": [0.1, 0.9], "tuned": [0.9, 0.1], "reference": [0.5, 0.5]}, 1, 5), abs=1e-5
    )
    assert float(KLConstrained(bound=0)({"base": leaning, "tuned": sure, "reference": even})) == 0
    same = {"base": leaning, "tuned": sure, "reference": sure}  # nothing to be held back
    assert float(KLConstrained(most=3)(same)) == 3
    certain = torch.tensor([[[1.0, 0.0]]]).log()
    assert float(Entropy()({"base": certain, "tuned": certain})) == 1
    assert float(Entropy()({"base": even, "tuned": certain})) == 2
    assert float(Divergence("base", "tuned")({"base": even, "tuned": even})) == 0


def test_measures_are_safe_where_probabilities_are_zero() -> None:
    one, other, even = (torch.tensor([p]).log() for p in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]))
    assert measures.entropy(one).item() == 0 and measures.entropy(even).item() == pytest.approx(math.log(2))
    assert measures.kl(one, even).item() == pytest.approx(math.log(2)) and measures.kl(even, one).item() == INF
    assert measures.kl(one, one).item() == 0
    assert measures.jensen_shannon(one, other).item() == pytest.approx(math.log(2))
    assert measures.agreement(one, other).item() == 0 and measures.agreement(one, one).item() == 1
    assert measures.nucleus_mass(even, one, 0.9).item() == 0.5
    assert measures.confidence(even).item() == 0.5


def test_what_rules_out_is_ruled_out_and_what_has_no_say_is_not() -> None:
    values = logits(1, 1, 1, 5)
    values["tuned"][0, 0, 2] = -INF
    never = Rule.of(lambda log_probs: torch.zeros(log_probs["tuned"].shape[:-1]), reads=["tuned"])
    always = Rule.of(lambda log_probs: torch.ones(log_probs["tuned"].shape[:-1]), reads=["tuned"])
    assert torch.equal(combine(values, Combination.emulate(alpha=never)), values["base"])
    combined = combine(values, Combination.emulate(alpha=always))
    assert combined[0, 0, 2] == -INF and bool(torch.isfinite(combined[0, 0, [0, 1, 3, 4]]).all())
    shared = {
        "base": values["base"],
        "tuned": values["tuned"],
        "reference": values["tuned"],
    }  # terms that cancel leave nothing behind
    assert torch.equal(combine(shared, Combination.emulate(alpha=RULES["kl"][0])), values["base"])


def test_nan_in_rows_is_the_rule_and_a_number_is_itself() -> None:
    values, nan = logits(2, 3, 2, 6), math.nan
    recipe = Combination.emulate(alpha=RULES["entropy"][0])
    ruled, plain = combine(values, recipe), combine(values, Combination.emulate(alpha=0.3))
    rows = torch.tensor([[1, nan, nan], [1, 0.3, -0.3], [1, nan, nan]])
    got = combine(values, recipe, rows)
    for row, expected in enumerate((ruled, plain, ruled)):
        torch.testing.assert_close(got[row], expected[row])
    got = combine(values, recipe, torch.stack([rows[0], rows[1]])[None])  # (1, positions, members)
    for place, expected in enumerate((ruled, plain)):
        torch.testing.assert_close(got[:, place], expected[:, place])
    assert combine(values, recipe, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("rule", ["keep", "base"])
def test_a_rule_is_asked_before_truncation(rule: Any) -> None:
    values = logits(3, 1, 1, 9)
    alpha = RULES["kl"][1](said(values, 0, 0))
    cut = Truncation(rule, 0.7)
    got = combine(values, Combination.emulate(alpha=RULES["kl"][0], truncation=cut))
    torch.testing.assert_close(got, combine(values, Combination.emulate(alpha=alpha, truncation=cut)), atol=1e-3, rtol=0)


def test_a_member_that_is_read_is_a_member() -> None:
    recipe = Combination.contrast(Divergence("base", "tuned"))
    assert (
        dict(recipe.coefficients)["tuned"] == 0.0
        and recipe.read_by_rules == ("base", "tuned")
        and recipe.ruled == ("base", "reference")
    )
    with pytest.raises(ValueError, match=r"names 'tuned', but the members are 'base', 'reference'"):
        recipe.check_names(("base", "reference"))
    values = logits(4, 1, 1, 6)
    strength = ruling.js(*(said(values, 0, 0)[name] for name in ("base", "tuned"))) / math.log(2)
    expected = combine(values, Combination.contrast(strength))
    torch.testing.assert_close(combine(values, recipe), expected, atol=1e-3, rtol=0)


def test_how_they_print() -> None:
    kl, bet = KLConstrained(tuned="a"), Confidence(tuned="b")
    steered = Combination.steer({"a": kl, "b": bet})
    assert str(steered) == "base + kl(1, to 2, of a) a + bet(0, of b) b - (kl(1, to 2, of a) + bet(0, of b)) reference"
    assert str(Combination.steer({"a": Entropy(), "b": Entropy()})).endswith("- 2 entropy(to 2) reference")
    assert str(Combination.interpolate(Entropy())) == "entropy(to 2) tuned + (1 - entropy(to 2)) reference"
    assert str(Combination.emulate(beta=0.5 * Entropy())) == "0.5 entropy(to 2) base + tuned - 0.5 entropy(to 2) reference"
    assert str(Combination.guide(1 + Divergence())) == "(1 + js(base, reference)) base - js(base, reference) reference"
    assert str(Combination({"base": 1 - bet, "b": bet})) == ("(1 - bet(0, of b)) base + bet(0, of b) b")
    by_phase = Combination.emulate(alpha={"think": Entropy(), "answer": 0.5})
    assert str(by_phase).startswith(
        "base + (think: entropy(to 2), answer: 0.5) tuned + (think: -entropy(to 2), answer: -0.5) reference"
    )
    assert (
        str(Combination.emulate(alpha=Confidence(threshold=0.5, most=2)))
        == "base + unsure(0.5, 0 to 2) tuned - unsure(0.5, 0 to 2) reference"
    )
    assert str(Combination.experts(RULES["js"][0])) == (
        "base + js(tuned, reference, to 1.5) tuned - js(tuned, reference, to 1.5) reference, only within the nucleus of base of mass 0.9"
    )


def test_weights_that_sum_to_one_at_every_token() -> None:
    share = Divergence("a", "b")
    assert str(Combination.mix({"a": share, "b": 1 - share})) == "js(a, b) a + (1 - js(a, b)) b"
    with pytest.raises(ValueError, match=r"must sum to 1, got"):
        Combination.mix({"a": share, "b": 0.5})


@pytest.mark.parametrize("which", [name for name in RULES if name not in ("gate", "written")])
def test_recipes_come_back_equal(which: str) -> None:
    rule, _ = RULES[which]
    for recipe in (
        Combination.emulate(alpha=rule),
        Combination.interpolate(0.2 - 3 * rule),
        Combination.emulate(alpha={"think": rule, "answer": 0.5}),
    ):
        assert Combination.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe == pickle.loads(pickle.dumps(recipe))
        assert hash(pickle.loads(pickle.dumps(recipe))) == hash(recipe)
    assert Combination.emulate(alpha=rule) != Combination.emulate(alpha=2 * rule) != Combination.emulate()


def test_what_a_user_writes_cannot_be_saved() -> None:
    for alpha in (RULES["written"][0], {"think": RULES["written"][0], "answer": 1.0}):
        with pytest.raises(
            ValueError, match=r"\['tuned', 'reference'\] were callables, which are not saved, nor rules of your own"
        ):
            Combination.from_dict(Combination.emulate(alpha=alpha).to_dict())


def described(**changes: Any) -> dict[str, Any]:
    rule = {"rule": "kl", "scale": 1.0, "options": {"bound": 1.0}, **changes}
    return {"coefficients": {"base": 1.0, "tuned": {"rules": [rule], "offset": 0.0}, "reference": 0.0}}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: KLConstrained(bound=-1), r"`bound` of the rule 'kl' must be a number from 0 up, got -1"),
        (lambda: KLConstrained(most=INF), "`most` of the rule 'kl' must be a number"),
        (lambda: KLConstrained(tuned=3), "must be told members by name, got 3"),
        (lambda: Confidence(margin=2), "`margin` of the rule 'confidence' must be a number from -1 to 1"),
        (lambda: Confidence(margin=0.1, threshold=0.5), "Give `margin` or `threshold`"),
        (lambda: Entropy(most="2"), "`most` of the rule 'entropy' must be a number, got '2'"),
        (lambda: Divergence("base", "base"), "compares two members, got 'base' twice"),
        (lambda: Entropy() * math.nan, "multiplied by numbers, got nan"),
        (lambda: Combination.emulate(alpha=[1.0, Entropy()]), "a schedule over positions, which holds numbers, got a rule in it"),
        (
            lambda: Combination.emulate(alpha={"think": Entropy(), "answer": KLConstrained()}),
            r"'tuned' has different rules in different phases, got entropy\(to 2\) and kl\(1, to 2\)",
        ),
        (lambda: Combination.emulate(alpha=Entropy()).coefficient("tuned"), r"is what the rule entropy\(to 2\) says of a token, no number"),
        (lambda: Combination.from_dict(described(rule=["kl"])), "There is no rule \\['kl'\\], but"),
        (lambda: Combination.from_dict(described(rule="sharp")), "There is no rule 'sharp', but 'kl', 'confidence'"),
        (lambda: Combination.from_dict(described(options={"edge": 1})), "The rule 'kl' has no option 'edge', but 'bound', 'most'"),
        (lambda: Combination.from_dict(described(options=[1])), r"The options of the rule 'kl' must be an object, got \[1\]"),
        (lambda: Combination.from_dict(described(scale="x")), "multiplied by numbers, got 'x'"),
        (lambda: Combination.emulate(alpha=1e308 * Entropy() + 1e308 * Entropy()), "'tuned' must be a finite number, got inf"),
        (lambda: Combination.from_dict(described(more=1)), "must have `rules`, each with `rule`, `scale` and `options`"),
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_users_rule_returns_is_looked_at() -> None:
    values = logits(5, 2, 3, 4)
    wide = Rule.of(lambda log_probs: log_probs["base"], reads=["base"])
    with pytest.raises(
        ValueError, match=r"The rule f\(base\) must return .* here \(2, 3\), for .* \(2, 3, 4\), got \(2, 3, 4\)"
    ):
        combine(values, Combination.emulate(alpha=wide))
    with pytest.raises(ValueError, match=r"must return finite numbers, got inf in row 0, position 0"):
        combine(values, Combination.emulate(alpha=Rule.of(lambda each: each["base"].amax(-1) * -INF, reads=["base"])))
    values["base"][1] = math.nan  # padding, of which members may say anything
    follows = Rule.of(lambda each: each["base"].amax(-1), reads=["base"])
    assert bool(torch.isfinite(combine(values, Combination.emulate(alpha=follows))[0]).all())
    with pytest.raises(ValueError, match="names of the members that it reads"):
        Rule.of(lambda each: each, reads=[])
    with pytest.raises(TypeError, match="A rule is a function of log-probs by member, got 3"):
        Rule.of(3, reads=["base"])  # type: ignore[arg-type]


def test_a_rule_is_asked_once_for_all_the_members_that_it_weights() -> None:
    asked = []
    counted = Rule.of(lambda log_probs: asked.append(1) or log_probs["base"].amax(-1), reads=["base"])
    combine(logits(6, 1, 2, 4), Combination.emulate(alpha=counted))
    assert len(asked) == 1


def test_a_gate_starts_as_a_constant_and_is_its_weights() -> None:
    values = normalised(logits(8, 1, 2, 6))
    start = Gate.start(alpha=0.5)
    assert start(values).tolist() == [[pytest.approx(0.5)] * 2] and start.features(values).shape == (1, 2, 15)
    assert sum(weight.numel() for weight in start.weights.values()) == 273
    assert ruling.trained() == ruling.trained() != ruling.trained(seed=5) and repr(start).startswith("Gate(members=")
    learns = Gate({name: weight.clone().requires_grad_() for name, weight in start.weights.items()})
    learns(values).sum().backward()
    assert all(weight.grad is not None for weight in learns.weights.values())
    recipe = Combination.emulate(alpha=ruling.GATE)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda w: Gate({**w, "hidden.bias": torch.zeros(3)}), r"`hidden.bias` of a gate on .* must be of shape \(16,\), got \(3,\)"),
        (lambda w: Gate({**w, "hidden.weight": torch.zeros(16)}), r"must be a tensor of shape \(1 to 256, features\), got \(16,\)"),
        (lambda w: Gate({**w, "out.bias": torch.tensor([math.nan])}), "`out.bias` of a gate must be finite"),
        (lambda w: Gate({**w, "more": torch.zeros(1)}), "got 'more' as well"),
        (lambda w: Gate(w, ("base", "base")), "2 to 8 different members"),
        (lambda w: Gate(w, most=-1), "`most` of the rule 'gate'"),
        (lambda w: Gate.start(alpha=2.0), "starts between 0 and its `most`, 2.0, got 2.0"),
        (lambda w: Combination.from_dict(Combination.emulate(alpha=Gate(w)).to_dict()), "are not here: they stand beside the recipe"),
    ],
)  # fmt: skip
def test_what_is_no_gate_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(Gate.start().weights)
