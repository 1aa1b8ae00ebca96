"""The analysis against sums over independent, stateless forwards, for recipes of every kind."""

from __future__ import annotations

import json
import math
from typing import Any

import oracle
import pytest
import torch
from analysed import PROMPT, RECIPES, SAID, WHOLE, alone, model_of, models_of
from families import build, shared

from hf_eft import Combination, EFTForCausalLM, Truncation, tiny
from hf_eft.analysis import analyse, passage, rewards
from hf_eft.analysis.effects import kl, total_variation


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "pieces"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_records_are_sums_over_independent_forwards(
    recipe: str, pieces: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pieces:
        monkeypatch.setattr(passage, "_CELLS", 2 * 64)  # two tokens at a time, through the members' caches
    models, combination = models_of(recipe), RECIPES[recipe][1]
    analysis = analyse(model_of(recipe), tokenizer, PROMPT, SAID)
    own = {name: alone(model) for name, model in models.items()}
    against = "base" if "base" in models else "reference" if "reference" in models else next(iter(models))
    assert analysis.against == against and analysis.members == tuple(models)
    tuned = [name for name in models if name not in ("base", "reference")]
    totals = dict.fromkeys(tuned, 0.0)
    weighted = 0.0
    for i, record in enumerate(analysis.records):
        token = int(SAID[i])
        weights = dict(zip(models, combination.at([i], list(models))[0].tolist(), strict=True))
        combined = oracle.log_probs(models, weights, WHOLE[: len(PROMPT) + i])
        assert record.position == i and record.token.id == token
        assert record.log_prob == pytest.approx(float(combined[token]), abs=1e-4)
        assert record.lift == pytest.approx(float(combined[token] - own[against][i, token]), abs=1e-4)
        assert record.choice.id == int(combined.argmax())
        assert record.changed == (int(combined.argmax()) != int(own[against][i].argmax()))
        for shifts, sign in ((record.raised, 1), (record.lowered, -1)):
            moved = (sign * (combined.exp() - own[against][i].exp())).topk(5)
            clear = [(token, by) for token, by in zip(moved.indices.tolist(), moved.values.tolist(), strict=True) if by > 1e-4]
            assert [shift.id for shift in shifts[: len(clear)]] == [token for token, _ in clear]
            assert all(sign * (shift.after - shift.before) > 0 for shift in shifts)
            for shift in shifts:
                assert shift.before == pytest.approx(float(own[against][i, shift.id].exp()), abs=1e-5)
                assert shift.after == pytest.approx(float(combined[shift.id].exp()), abs=1e-5)
        for name, log_probs in own.items():
            assert record.log_probs[name] == pytest.approx(float(log_probs[i, token]), abs=1e-4)
            assert record.choices[name].id == int(log_probs[i].argmax())
            p, q = combined.exp(), log_probs[i].exp()
            assert record.total_variation[name] == pytest.approx(float((p - q).clamp(min=0).sum()), abs=1e-5)
            assert record.kl[name] == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-4)
        for name in tuned:
            p, q = combined.exp(), own[name][i].exp()
            assert record.acceptance[name] == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-5)
            assert record.agrees[name] == (int(p.argmax()) == int(q.argmax()))
            if name != against:
                start = own[against][i].exp()
                assert record.tuned_total_variation[name] == pytest.approx(float((q - start).clamp(min=0).sum()), abs=1e-5)
                assert record.tuned_kl[name] == pytest.approx(float((q * (q / start).log()).sum()), abs=1e-4)
            if "reference" in models:
                delta = float(own[name][i, token] - own["reference"][i, token])
                totals[name] += delta
                weighted += delta * (weights[name] if len(tuned) > 1 else 1.0)
                assert record.deltas[name] == pytest.approx(delta, abs=1e-4)
                assert record.rewards[name] == pytest.approx(totals[name], abs=1e-3)
        if "reference" in models:
            assert record.reward == pytest.approx(weighted, abs=1e-3)
        else:
            assert record.delta is None and record.reward is None


def test_who_changed_the_choice(tokenizer: Any) -> None:
    """The member whose term adds most to the margin of the new choice over the base's: computed anew from the log-probs."""
    seen = set()
    for recipe in ("emulate", "steer"):
        models, combination = models_of(recipe), RECIPES[recipe][1]
        own = {name: alone(model) for name, model in models.items()}
        for i, record in enumerate(analyse(model_of(recipe), tokenizer, PROMPT, SAID).records):
            if not record.changed:
                assert record.changed_by is None
                continue
            new, old = record.choice.id, record.choices["base"].id
            shares = {
                name: combination.coefficient(name) * float(own[name][i, new] - own[name][i, old])
                for name in models
                if name != "base"
            }
            assert record.changed_by == max(shares, key=lambda name: shares[name])
            seen.add(record.changed_by)
    assert len(seen) > 1


@pytest.mark.parametrize("recipe", ["emulate", "steer", "schedule"])
def test_log_probs_are_the_model_s_and_rewards_two_likelihoods(recipe: str, tokenizer: Any) -> None:
    model = model_of(recipe)
    model.combination = combination = Combination({**RECIPES[recipe][1].coefficients})
    analysis = analyse(model, tokenizer, PROMPT, SAID)
    if not combination.scheduled:  # a forward counts a schedule from the first token of the sequence
        with torch.no_grad():
            logits = model(WHOLE[None]).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, SAID[:, None])[:, 0].tolist()
        assert [record.log_prob for record in analysis.records] == pytest.approx(expected, abs=1e-5)
    summary, others = analysis.summary(), [SAID, SAID.flip(0), SAID[:2]]
    models = models_of(recipe)
    tuned = [name for name in models if name not in ("base", "reference")]

    def likelihood(name: str, said: torch.Tensor) -> float:
        return float(alone(models[name], said=said).gather(1, said[:, None]).sum())

    ranked = rewards(model, tokenizer, PROMPT, others)
    weights = (
        {name: combination.coefficient(name) if len(tuned) > 1 else 1.0 for name in tuned}
        if len(tuned) > 1
        else {tuned[0]: 1.0}
    )
    for reward, said in zip(ranked, others, strict=True):
        expected = sum(w * (likelihood(name, said) - likelihood("reference", said)) for name, w in weights.items())
        assert reward == pytest.approx(expected, abs=1e-3)
    assert summary["reward"] == pytest.approx(ranked[0], abs=1e-4)
    assert summary["tokens"] == len(SAID)
    for name in models:
        assert summary[f"log_prob_{name}"] == pytest.approx(likelihood(name, SAID), abs=1e-3)
    assert summary["changed"] == sum(record.changed for record in analysis.records) / len(SAID)
    assert summary["acceptance_" + tuned[0]] == pytest.approx(1 - summary["total_variation_" + tuned[0]], abs=1e-6)


def test_a_reference_of_its_own(tokenizer: Any) -> None:
    models = {name: shared("gpt2", seed) for name, seed in (("helpful", 1), ("brief", 2), ("before", 3))}
    base, reference = shared("llama", 0), shared("gpt2", 4)
    recipe = Combination.steer({"helpful": 0.5, "brief": 0.5}, references={"brief": "before"})
    model = EFTForCausalLM.from_models(base, tuned=models, reference=reference, combination=recipe)
    record = analyse(model, tokenizer, PROMPT, SAID, references={"brief": "before"}).records[0]
    assert record.deltas == pytest.approx(
        {
            "helpful": record.log_probs["helpful"] - record.log_probs["reference"],
            "brief": record.log_probs["brief"] - record.log_probs["before"],
        }
    )
    with pytest.raises(ValueError, match="`references` names \\['nobody'\\]"):
        analyse(model, tokenizer, PROMPT, SAID, references={"brief": "nobody"})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_adapters() -> None:
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    trunk = build("llama", 3)
    adapter = peft.get_peft_model(trunk, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    model = EFTForCausalLM.from_models(build("llama", 0), tuned=adapter)
    record = analyse(model, tiny.load().tokenizer, PROMPT, SAID).records[-1]
    with torch.no_grad():
        on = adapter(WHOLE[None]).logits[0, -2].log_softmax(-1)[SAID[-1]]
        with adapter.disable_adapter():
            off = adapter(WHOLE[None]).logits[0, -2].log_softmax(-1)[SAID[-1]]
    assert record.delta == pytest.approx(float(on - off), abs=1e-4) and abs(record.delta) > 1e-3


@pytest.mark.parametrize("rule", ["keep", "drop", "base", "plausible"])
def test_what_is_ruled_out_is_json(rule: Any, tokenizer: Any) -> None:
    recipe = Combination.emulate(truncation=Truncation(rule, 0.3))
    model = model_of("emulate", recipe)
    analysis = analyse(model, tokenizer, PROMPT, SAID)
    with torch.no_grad():
        expected = model(WHOLE[None]).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1).gather(1, SAID[:, None])[:, 0].tolist()
    assert [record.log_prob for record in analysis.records] == pytest.approx(expected, abs=1e-5)
    dicts = analysis.to_dicts()
    text = json.dumps([dicts, analysis.summary()], allow_nan=False)
    assert all(not isinstance(value, (dict, list)) for row in dicts for value in row.values())
    assert {tuple(row) for row in json.loads(text)[0]} and len(dicts) == len(SAID)
    if rule != "keep":
        assert -math.inf in expected and None in [row["log_prob"] for row in dicts] and analysis.summary()["log_prob"] is None
    for record in analysis.records:
        assert 0 <= record.total_variation["base"] <= 1 and not math.isnan(record.kl["base"])
        assert math.isfinite(record.kl["base"])  # the combination rules out more than its members, not less
        assert record.changed_by in (None, "base", "tuned", "reference", "truncation")


def test_a_truncation_can_change_the_choice(tokenizer: Any) -> None:
    """With the delta switched off, only the nucleus can."""
    recipe = Combination.emulate(alpha=0.0, truncation=Truncation("drop", 0.01))
    found = analyse(model_of("emulate", recipe), tokenizer, PROMPT, SAID).records
    assert "truncation" in {record.changed_by for record in found}


def test_divergences() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.0, 0.75]).log()
    assert float(total_variation(p.exp(), q.exp())) == pytest.approx(0.75)
    assert float(kl(p, q)) == math.inf
    assert float(kl(p, torch.tensor([0.25, 0.25, 0.5]).log())) == pytest.approx(math.log(2))
    assert float(kl(p, p)) == 0 and float(total_variation(q.exp(), q.exp())) == 0


def test_no_delta_no_change(trained: EFTForCausalLM, tokenizer: Any) -> None:
    trained.combination = Combination.emulate(alpha=0.0)
    analysis = analyse(trained, tokenizer, tiny.questions()[0].prompt, max_new_tokens=6)
    assert analysis.summary()["total_variation_base"] < 1e-6 and analysis.summary()["changed"] == 0


def test_coefficients_and_prompts_of_a_call(tokenizer: Any) -> None:
    model = model_of("emulate")
    given = torch.tensor([[1.0, 0.3, -0.2]])
    found = analyse(model, tokenizer, PROMPT, SAID, coefficients=given)
    expected = oracle.log_probs(
        models_of("emulate"), dict(zip(("base", "tuned", "reference"), given[0].tolist(), strict=True)), WHOLE[:-1]
    )
    assert found.records[-1].log_prob == pytest.approx(float(expected[SAID[-1]]), abs=1e-4)
    other = torch.tensor([[8, 8, 33]])
    found = analyse(model, tokenizer, PROMPT, SAID, member_inputs={"tuned": {"input_ids": other}})
    own = alone(models_of("emulate")["tuned"], prompt=other[0])
    assert [r.log_probs["tuned"] for r in found.records] == pytest.approx(own.gather(1, SAID[:, None])[:, 0].tolist(), abs=1e-4)
    made = analyse(model, tokenizer, PROMPT, max_new_tokens=4, member_inputs={"tuned": {"input_ids": other}})
    assert [record.token.id for record in made.records] == [record.choice.id for record in made.records]


# In pieces ------------------------------------------------------------------------------------------------------------


def test_prompts_of_a_call_in_pieces(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"tuned": {"input_ids": torch.tensor([[0, 8, 8, 33]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}}
    whole = analyse(model_of("emulate"), tokenizer, PROMPT, SAID, member_inputs=other)
    monkeypatch.setattr(passage, "_CELLS", 2 * 64)
    pieces = analyse(model_of("emulate"), tokenizer, PROMPT, SAID, member_inputs=other)
    assert [r.log_prob for r in pieces.records] == pytest.approx([r.log_prob for r in whole.records], abs=1e-4)


def test_pieces_bound_the_memory(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the text, members return logits for no more tokens than a piece has."""
    model, seen = model_of("emulate"), []
    step = type(model._members).step

    def watched(*args: Any, **kwargs: Any) -> Any:
        outputs = step(*args, **kwargs)
        seen.extend(output.logits.shape[1] for output in outputs.values())
        return outputs

    monkeypatch.setattr(type(model._members), "step", watched)
    monkeypatch.setattr(passage, "_CELLS", 4 * 64)
    analyse(model, tokenizer, PROMPT, SAID.repeat(5))
    assert max(seen) == 4 and sum(seen) == 3 * 30  # and each token was looked at once by each member
