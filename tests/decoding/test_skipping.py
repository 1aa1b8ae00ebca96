"""Members that are not run: the tokens are those of all members, and forwards are saved."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import thinking
import torch
from adapted import PEFT_SAYS
from families import PAD, build, lora
from skipped import OPTIONS, RECIPES, counted, in_doubt, model
from thinking import prompts
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_eft import Combination, EFTForCausalLM, Rule, Skipping, Truncation
from hf_eft.members.checks import Finite
from hf_eft.members.releases import CACHE, cache_of

pytestmark = PEFT_SAYS
_SEARCH = {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True},
    "top_p": {"do_sample": True, "top_p": 0.7, "temperature": 1.3, "num_return_sequences": 2},
    "beams": _SEARCH,
    "sampled beams": {**_SEARCH, "do_sample": True},
    "no cache": {"use_cache": False},
    "prompt in pieces": {"prefill_chunk_size": 4},
    "a processor": {"repetition_penalty": 1.4},
    "guidance": {"guidance_scale": 1.5},
    "texts that end": {"eos_token_id": 6, "do_sample": True},
}


def both(combined: Any, inputs: Any, skipping: Any = True, **options: Any) -> tuple[Any, Any]:
    """The answers without and with skipping, drawn with the same numbers."""
    answers = []
    for asked in (None, skipping):
        torch.manual_seed(3)
        answers.append(combined.generate(**inputs, **{**OPTIONS, **options}, skipping=asked))
    return answers[0], answers[1]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_tokens_are_those_of_all_members(recipe: str, rows: int) -> None:
    combined, inputs = model(RECIPES[recipe]), prompts(rows)
    for name, options in STRATEGIES.items():
        if name == "guidance" and recipe != "schedule":
            continue  # a truncation leaves it differences of `-inf`
        few = rows == 3 or recipe in ("one member", "by tuned", "plausible")
        if few and name not in ("greedy", "sample", "beams", "texts that end"):
            continue
        expected, got = both(combined, inputs, max_new_tokens=14, **options)
        if "num_beams" in options:
            torch.testing.assert_close(got.sequences_scores, expected.sequences_scores, atol=1e-5, rtol=0)
            expected, got = expected.sequences, got.sequences
        assert got.tolist() == expected.tolist(), name
        if recipe == "schedule" or (rows == 1 and name == "greedy"):
            # Left out, and asked again after that: what was missed was read in blocks.
            assert min(combined.skipping.forwards.values()) < combined.skipping.steps, name
            assert name == "no cache" or any(combined.skipping.blocks.values()), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_token_is_that_of_whole_forwards(recipe: str) -> None:
    """The stateless formula, with every member at every step."""
    combined, inputs = model(RECIPES[recipe]), prompts(1)
    got = combined.generate(**inputs, **OPTIONS, skipping=True)[0]
    length = inputs["input_ids"].shape[1]
    padding = int((inputs["attention_mask"] == 0).sum())
    for n in range(length, len(got)):
        text = got[None, padding:n]
        places = (
            combined.combination.at([n - length], combined._members.names)[None] if combined.combination.scheduled else None
        )
        with torch.no_grad():
            if combined.combination.phased:
                alpha = {"think": 0.0, "plan": 0.0, "answer": 0.9}[thinking.standing(text[0].tolist())[0]]
                must = thinking.standing(text[0].tolist())[1]
                expected = thinking.oracle.log_probs(
                    combined.members, {"base": 1.0, "tuned": alpha, "reference": -alpha}, text[0]
                )
                choice = int(expected.argmax()) if must is None else must
            else:
                keep = None if places is None else places.expand(1, text.shape[1], -1)
                choice = int(combined(text, coefficients=keep, logits_to_keep=1).logits[0, -1].argmax())
        assert int(got[n]) == choice, n


def test_the_report_is_of_what_was_run() -> None:
    combined, inputs = model(RECIPES["schedule"]), prompts(1)
    members = combined.members
    assert combined.skipping is None
    with counted(*members.values()) as read:
        combined.generate(**inputs, **OPTIONS, skipping=True)
    report, prompt = combined.skipping, inputs["input_ids"].shape[1]
    assert {name: len(read[each]) for name, each in members.items()} == report.forwards
    assert report.steps == 20 and report.forwards == {"base": 20, "tuned": 4, "reference": 4}
    assert report.skipped["tuned"] == {"coefficients": 16} and report.saved["tuned"] == 0.8 and report.saved["base"] == 0
    # The third token needs the prompt and two tokens, in one block.
    assert read[members["tuned"]] == [prompt + 2, 4, 1, 5] and report.blocks["tuned"] == [prompt + 1, 3, 4]
    combined.generate(**inputs, **OPTIONS)
    assert combined.skipping is report  # the last call that was asked to skip


def test_every_row_must_agree_and_rows_that_have_ended_need_not() -> None:
    combined, inputs = model(Combination.emulate()), {name: each[:2] for name, each in prompts(3).items()}
    for alpha in (0.6, 0.9, 1.2, 1.5, 1.8, -0.6, -0.9, 2.5, 4.0):  # until one has the second row end before the first
        alone = torch.tensor([[1.0, 0.0, 0.0], [1.0, alpha, -alpha]])
        expected, got = both(combined, inputs, coefficients=alone, max_new_tokens=10)
        assert got.tolist() == expected.tolist() and combined.skipping.saved["tuned"] == 0
        first, second = expected[:, 9:].tolist()
        if ends := next((token for n, token in enumerate(second[:5]) if n and token not in second[:n] + first), None):
            break
    expected, got = both(combined, inputs, coefficients=alone, eos_token_id=ends, max_new_tokens=10)
    assert got.tolist() == expected.tolist() and bool((got[1, -4:] == PAD).all())
    assert combined.skipping.forwards["tuned"] == second.index(ends) + 1
    options = {**OPTIONS, "eos_token_id": ends, "max_new_tokens": 10, "return_dict_in_generate": True, "output_logits": True}
    shown = combined.generate(**inputs, **options, coefficients=alone, skipping=True)
    assert shown.sequences.tolist() == expected.tolist() and combined.skipping.saved["tuned"] == 0


def test_prompts_that_end_in_an_end_token_have_not_ended() -> None:
    """As they do where a turn of a conversation is closed before the next."""
    combined, inputs = model(RECIPES["truncation"]), {"input_ids": torch.tensor([[5, 4, 6], [3, 7, 6]])}
    expected, got = both(combined, inputs, eos_token_id=6, do_sample=True)
    assert got.tolist() == expected.tolist()
    silent = torch.tensor([[1.0, 0.8, -0.8]]).expand(2, -1)
    expected, got = both(model(Combination.emulate()), inputs, eos_token_id=6, coefficients=silent)
    assert got.tolist() == expected.tolist()


def test_a_rule_that_reads_members_has_these_run() -> None:
    def agreed(log_probs: Any) -> torch.Tensor:
        same = log_probs["tuned"].argmax(-1) == log_probs["base"].argmax(-1)
        return torch.where(same, 0.8, 0.0)

    combined = model(Combination.emulate(alpha=Rule.of(agreed, reads=["base", "tuned"])))
    expected, got = both(combined, prompts(1))
    assert got.tolist() == expected.tolist() and combined.skipping.forwards["tuned"] == 20


@pytest.mark.parametrize("recipe", ["rule", "truncation"])
def test_what_a_member_says_is_looked_at_once(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, looked = [], Counter[str]()

    def noted(log_probs: Any) -> torch.Tensor:
        asked.append(len(log_probs))
        return in_doubt(log_probs)

    class Noted(Finite):
        def __init__(self, logits: Any, attention_mask: Any) -> None:
            looked.update(list(logits))
            super().__init__(logits, attention_mask)

    monkeypatch.setattr("hf_eft.members.members.Finite", Noted)
    rule = Combination.emulate(alpha=Rule.of(noted, reads=["base"]))
    combined = model(rule if recipe == "rule" else RECIPES[recipe])
    combined.generate(**prompts(1), **OPTIONS, skipping=True)
    forwards = combined.skipping.forwards
    assert 0 < forwards["tuned"] < forwards["base"] and looked == forwards
    assert len(asked) == (forwards["base"] if recipe == "rule" else 0)


def test_a_phase_that_must_end_needs_nobody() -> None:
    thought = thinking.Phase("think", [5], [6, 7, 4, 3], budget=1)
    combined, inputs = model(Combination.emulate(alpha=0.8, phases=[thought])), prompts(1)
    expected, got = both(combined, inputs)
    assert got.tolist() == expected.tolist() and combined.skipping.skipped["reference"]["certain"] >= 3


@pytest.mark.parametrize("family", ["gpt2", "opt", "mistral", "gemma3", "lfm2", "mamba", "jamba", "qwen3_5"])
@pytest.mark.parametrize("how", ["greedy", "beams"])
def test_members_of_every_kind_catch_up(family: str, how: str) -> None:
    combined = model(RECIPES["schedule"], tuned=thinking.member(family, 1), reference=thinking.member(family, 2))
    if how == "beams" and combined._members.stateful:
        return  # refused, with or without skipping
    expected, got = both(combined, prompts(3), **STRATEGIES[how])
    expected, got = (each if isinstance(each, torch.Tensor) else each.sequences for each in (expected, got))
    assert got.tolist() == expected.tolist() and combined.skipping.blocks["tuned"]


def test_a_main_member_that_counts_no_tokens() -> None:
    combined = model(RECIPES["schedule"], base=thinking.member("mamba", 0), reference=thinking.member("mamba", 2))
    expected, got = both(combined, prompts(3))
    assert got.tolist() == expected.tolist() and combined.skipping.blocks["tuned"]


@pytest.mark.parametrize("recipe", ["schedule", "truncation"])
def test_prompts_of_their_own(recipe: str) -> None:
    combined, inputs, other = model(RECIPES[recipe]), prompts(3), prompts(4, longest=12)
    own = {name: {key: each[1:].clone() for key, each in other.items()} for name in ("tuned", "reference")}
    for options in ({}, {"do_sample": True}, {"num_beams": 2}):
        expected, got = both(combined, inputs, member_inputs=own, **options)
        assert got.tolist() == expected.tolist()
    assert recipe != "schedule" or combined.skipping.blocks["tuned"]


class _Stop(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize("rows", [1, 3])
def test_going_on_from_a_cache_that_members_have_not_read(rows: int) -> None:
    """Stopped in the middle, with tokens unread: whoever goes on from the cache has them read first."""
    combined, inputs = model(RECIPES["schedule"]), prompts(rows)
    stopped = combined.generate(
        **inputs, **OPTIONS, skipping=True, return_dict_in_generate=True, stopping_criteria=StoppingCriteriaList([_Stop(15)])
    )
    assert stopped.sequences.shape[1] == 15 and {each.count for each in cache_of(stopped).unread.values()} == {3}
    combined.combination = Combination.emulate(alpha=0.8)
    mask = torch.cat([inputs["attention_mask"], torch.ones(rows, 6, dtype=torch.long)], dim=1)
    further = {"input_ids": stopped.sequences, "attention_mask": mask}
    expected = combined.generate(**further, **OPTIONS).tolist()
    for options in ({}, {"skipping": True}, {"assistant_model": combined.tuned, "num_assistant_tokens": 3}):
        got = combined.generate(**further, **OPTIONS, **options, **{CACHE: copy.deepcopy(cache_of(stopped))})
        assert got.tolist() == expected, options
    # `forward` alone, with positions and without.
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    if rows == 1:
        text = stopped.sequences[:, int((inputs["attention_mask"] == 0).sum()) :]
    for more in (
        ({"position_ids": places[:, -1:]}, {}) if rows == 1 and text.shape[1] == 15 else ({"position_ids": places[:, -1:]},)
    ):
        cache = copy.deepcopy(cache_of(stopped))
        with torch.no_grad():
            logits = combined(stopped.sequences[:, -1:], attention_mask=mask, **more, **{CACHE: cache}).logits[:, -1]
            whole = combined(stopped.sequences, attention_mask=mask, position_ids=places).logits[:, -1]
        torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-5)
        assert not cache.unread


def test_adapters_on_one_model_catch_up_in_one_pass() -> None:
    trunk = build("llama", 4, vocab_size=thinking.TOKENS).double()
    recipe = RECIPES["schedule"]
    combined = EFTForCausalLM.from_models(thinking.member("llama", 0), tuned=lora(trunk).double(), combination=recipe)
    assert combined._members.stacks
    expected, got = both(combined, prompts(3))
    assert got.tolist() == expected.tolist() and combined.skipping.blocks["tuned"]
    with counted(combined._members.stacks[0].member.model) as read:
        combined.generate(**prompts(3), **OPTIONS, skipping=True)
    assert [*read.values()] == [[11, 4, 1, 5]]


def test_a_model_that_serves_as_several_members() -> None:
    base, tuned = thinking.member("llama", 0), thinking.member("qwen3", 1)
    combined = EFTForCausalLM.from_models(base, tuned=tuned, reference=base, combination=RECIPES["truncation"])
    expected, got = both(combined, prompts(1))
    assert got.tolist() == expected.tolist() and list(combined.skipping.forwards) == ["base", "tuned"]
    assert combined.skipping.saved["tuned"] > 0


def test_a_known_bound() -> None:
    """Members whose terms cancel move nothing: the base decides wherever it prefers a token at all."""
    twin = copy.deepcopy(thinking.member("qwen3", 1))
    combined, inputs = model(Combination.emulate(alpha=0.9), reference=twin), prompts(3)
    expected, got = both(combined, inputs, skipping=Skipping(bound=0.0))
    assert got.tolist() == expected.tolist()
    assert combined.skipping.forwards == {"base": 20, "tuned": 0, "reference": 0}
    # With a delta, no more is left out than the bound allows: none where it is beyond every lead, and where it holds, tokens are equal.
    combined = model(Combination.emulate(alpha=0.05))
    assert both(combined, inputs, skipping=Skipping(bound=1e9))[1].tolist() == both(combined, inputs)[0].tolist()
    assert combined.skipping is not None and combined.skipping.saved["tuned"] == 0
    text = combined.generate(**inputs, **OPTIONS)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 20, dtype=torch.long)], dim=1)
    with torch.no_grad():
        said = combined.member_logits(text, mask)
    delta = 0.05 * (said["tuned"] - said["reference"])
    bound = float((delta.amax(-1) - delta.amin(-1))[mask.bool()].max())
    expected, got = both(combined, inputs, skipping=Skipping(bound=bound))
    assert got.tolist() == expected.tolist() and combined.skipping.skipped["tuned"]["bound"] > 0
    assert combined.skipping.forwards["tuned"] > 0


def test_a_bound_from_recent_steps() -> None:
    twin = copy.deepcopy(thinking.member("qwen3", 1))
    combined, inputs = model(Combination.emulate(alpha=0.9), reference=twin), prompts(3)
    expected, got = both(combined, inputs, skipping=Skipping(recent=4))
    assert got.tolist() == expected.tolist() and combined.skipping.forwards["tuned"] == 4  # as many as must be seen first
    assert combined.skipping.skipped["tuned"] == {"recent": 16}
    combined = model(Combination.emulate(alpha=0.5))
    saved = []
    for factor in (0.0, 1.0, 1e9):
        combined.generate(**inputs, **OPTIONS, skipping=Skipping(recent=2, factor=factor))
        saved.append(combined.skipping.saved["tuned"])
    assert saved[0] == 0.9 and saved[0] > saved[1] >= saved[2] == 0


def test_a_truncation_and_a_bound_together() -> None:
    twin = copy.deepcopy(thinking.member("qwen3", 1))
    combined = model(Combination.emulate(alpha=0.9, truncation=Truncation("base", 0.6)), reference=twin)
    expected, got = both(combined, prompts(1), skipping=Skipping(bound=0.0))
    assert got.tolist() == expected.tolist() and set(combined.skipping.skipped["tuned"]) == {"truncation", "bound"}
