"""The pure core: recipes and the combination of tensors."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_eft import Combination, Truncation
from hf_eft.recipe.combine import combine
from hf_eft.recipe.rules.measures import nucleus

INF = math.inf


def members(*shape: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: 3 * torch.randn(*shape, generator=generator) for name in ("base", "tuned", "reference")}


def test_presets() -> None:
    assert dict(Combination.emulate().coefficients) == {"base": 1, "tuned": 1, "reference": -1}
    assert Combination.emulate(alpha=1.0) == Combination.emulate(beta=1.0)
    assert dict(Combination.emulate(beta=1.5).coefficients) == {"base": 1.5, "tuned": 1, "reference": -1.5}
    assert dict(Combination.steer({"a": 0.7, "b": 0.3}).coefficients) == {"base": 1, "a": 0.7, "b": 0.3, "reference": -1}
    assert dict(Combination.interpolate(0.25).coefficients) == {"tuned": 0.25, "reference": 0.75}
    assert dict(Combination.mix({"a": 0.25, "b": 0.75}).coefficients) == {"a": 0.25, "b": 0.75}
    contrast = Combination.contrast(0.5, 0.1)
    assert dict(contrast.coefficients) == {"base": 1.5, "reference": -0.5}
    assert contrast.truncation == Truncation("plausible", 0.1)
    assert dict(Combination.guide(3.0).coefficients) == {"base": 3, "reference": -2}


def test_presets_have_the_strengths_of_their_papers() -> None:
    assert Combination.contrast() == Combination.contrast(0.5, 0.1)
    assert Combination.guide() == Combination.guide(1.5)
    assert Combination.experts() == Combination.emulate(2.0, truncation=Truncation("base", 0.9))
    assert Combination.proxy() == Combination.emulate(1.0)


def test_how_recipes_print() -> None:
    assert str(Combination({"base": 1, "a": 0, "b": 0.7, "reference": -0.7})) == "base + 0.7 b - 0.7 reference"
    assert repr(Combination({"base": 1})) == "Combination(coefficients=mappingproxy({'base': 1.0}), truncation=None, phases=())"


def test_the_order_of_the_members_is_no_part_of_a_recipe() -> None:
    one, other = Combination({"base": 1, "tuned": 2}), Combination({"tuned": 2, "base": 1})
    assert one == other
    assert len({one, other}) == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Combination({"base": math.nan}), "'base' must be a finite number, got nan"),
        (lambda: Combination({"base": 1, "tuned": INF}), "'tuned' must be a finite number, got inf"),
        (lambda: Combination({"base": "1"}), "'base' must be a finite number, got '1'"),
        (lambda: Combination({"base": True}), "got True"),
        (lambda: Combination({}), "At least one coefficient must differ from 0, got no members"),
        (lambda: Combination({"base": 0.0}), "At least one coefficient must differ from 0, got {'base': 0.0}"),
        (lambda: Combination.emulate(alpha=1, beta=2), "not both"),
        (lambda: Combination.mix({"a": 0.5}), "must sum to 1"),
        (lambda: Combination.mix({"base": 1.0}), "weights of the tuned members"),
        (lambda: Combination.steer({}), "weights of the tuned members"),
        (lambda: Truncation("nucleus", 0.9), "`rule` must be one of keep, drop, base, plausible"),
        (lambda: Truncation("keep", 1.5), "must be in"),
        (lambda: Combination({"a": 1, "b": 1, "base": 1}, Truncation("keep", 0.9)), "exactly one"),
        (lambda: Combination({"tuned": 1}, Truncation("base", 0.9)), "needs the member 'base'"),
    ],
)
def test_bad_recipes_say_what_is_wrong(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_is_immutable_hashable_picklable_and_json_able() -> None:
    recipe = Combination.emulate(alpha=0.5, truncation=Truncation("keep", 0.9))
    with pytest.raises(TypeError):
        recipe.coefficients["base"] = 2.0
    assert pickle.loads(pickle.dumps(recipe)) == recipe == Combination.from_dict(recipe.to_dict())
    assert len({recipe, Combination.from_dict(recipe.to_dict())}) == 1


def test_plain_sum_of_raw_logits() -> None:
    x = members(2, 3, 11)
    got = combine(x, Combination.emulate(alpha=0.5))
    torch.testing.assert_close(got, x["base"] + 0.5 * (x["tuned"] - x["reference"]))
    assert got.dtype == torch.float32


def test_the_members_are_not_written_to() -> None:
    x = members(2, 3, 11)
    before = {name: value.clone() for name, value in x.items()}
    for truncation in (None, Truncation("drop", 0.5)):
        combine(x, Combination.emulate(truncation=truncation))
        combine(x, Combination({"base": 1.0}, None))
    assert all(torch.equal(value, before[name]) for name, value in x.items())


def test_terms_that_share_a_tensor_cancel_exactly() -> None:
    x = members(2, 3, 11)
    x["reference"] = x["base"]
    assert torch.equal(combine(x, Combination.emulate()), x["tuned"])
    x["reference"] = x["tuned"]
    assert torch.equal(combine(x, Combination.emulate()), x["base"])


def test_half_precision_members_are_combined_in_float32() -> None:
    x = {name: value.to(torch.bfloat16) for name, value in members(2, 3, 11).items()}
    expected = x["base"].float() + 0.3 * (x["tuned"].float() - x["reference"].float())
    torch.testing.assert_close(combine(x, Combination.emulate(alpha=0.3)), expected)


class Made(TorchDispatchMode):
    """The memory that tensors are made in; they are kept, so that none is made in the memory of another."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.kept.setdefault(out.untyped_storage().data_ptr(), out)
        return out


def test_half_precision_members_are_brought_to_float32_in_one_buffer() -> None:
    x = {name: value.to(torch.bfloat16) for name, value in members(2, 3, 11).items()}
    with Made() as made:
        got = combine(x, Combination.emulate(alpha=0.3))
    assert [out.data_ptr() for out in made.kept.values()] == [got.data_ptr()]


@pytest.mark.parametrize("by_row", [False, True])
def test_infinities_stay_and_never_become_nan(by_row: bool) -> None:
    x = {name: torch.zeros(1, 1, 6) for name in ("base", "tuned", "reference")}
    x["base"][..., 0] = -INF
    x["tuned"][..., 1] = -INF
    x["reference"][..., 2] = -INF
    x["tuned"][..., 3] = x["reference"][..., 3] = -INF
    for value in x.values():
        value[..., 4] = -INF
    rows = torch.tensor([[1.0, 1.0, -1.0]]) if by_row else None
    got = combine(x, Combination.emulate(), rows)[0, 0]
    assert got.tolist() == [-INF] * 5 + [0.0]


def test_a_member_without_a_say_rules_nothing_out() -> None:
    x = members(2, 1, 5)
    x["tuned"][..., 0] = -INF
    assert torch.equal(combine(x, Combination.emulate(alpha=0.0)), x["base"])
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, -1.0]])
    got = combine(x, Combination.emulate(), rows)
    assert torch.equal(got[0], x["base"][0])
    assert got[1, 0, 0] == -INF


def test_coefficients_by_row() -> None:
    x = members(3, 2, 7)
    rows = torch.tensor([[1.0, 0.5, -0.5], [1.0, 2.0, -2.0], [0.0, 1.0, 0.0]])
    got = combine(x, Combination.emulate(), rows)
    for row in range(3):
        expected = sum(rows[row, k] * value[row] for k, value in enumerate(x.values()))
        torch.testing.assert_close(got[row], expected)


def test_coefficients_that_cancel_to_nothing() -> None:
    x = torch.zeros(1, 1, 3)
    with pytest.raises(ValueError, match="nothing is left"):
        combine({"a": x, "b": x}, Combination({"a": 1.0, "b": -1.0}))


def test_nucleus() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]]).log()
    assert nucleus(p, 0.75).tolist() == [[True, True, False, False], [True, False, False, False]]
    assert nucleus(p, 0.85).tolist()[0] == [True, True, True, False]
    assert nucleus(p, 1e-9).sum(-1).tolist() == [1, 1]


@pytest.mark.parametrize("rule", ["keep", "drop", "base", "plausible"])
def test_truncation_rules(rule: str) -> None:
    x = members(2, 3, 11)
    log_probs = {name: value.log_softmax(-1) for name, value in x.items()}
    truncation = Truncation(rule, 0.6 if rule != "plausible" else 0.1)
    got = combine(x, Combination.emulate(beta=1.5, truncation=truncation))
    plain = log_probs["tuned"] + 1.5 * (log_probs["base"] - log_probs["reference"])
    guide = log_probs["tuned" if rule in ("keep", "drop") else "base"]
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        row = guide[tuple(index)]
        if rule == "plausible":
            inside = {t for t in range(11) if row[t] >= row.max() + math.log(0.1)}
        else:
            inside, mass = set(), 0.0
            for t in row.argsort(descending=True).tolist():
                if mass >= 0.6:
                    break
                inside.add(t)
                mass += row[t].exp().item()
        for t in range(11):
            value = got[(*index, t)]
            if t in inside:
                torch.testing.assert_close(value, plain[(*index, t)])
            elif rule == "keep":
                torch.testing.assert_close(value, log_probs["tuned"][(*index, t)])
            else:
                assert value == -INF
