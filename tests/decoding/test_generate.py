"""Identities 1 and 2 of the method: with base = reference the combination is the tuned model, with alpha = 0 the base, under every
decoding strategy, in values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import ASSISTED, FAMILIES, ON_THE_BASE_FIRST, STATEFUL, STRATEGIES, options_for, prompts, shared

from hf_eft import EFTForCausalLM, EFTLogitsProcessor
from hf_eft.members.members import Member, Members

# The tuned member is of another family than the base, so that each family is met in both places.
ORDER = list(FAMILIES)
# They change scores, whoever gave them: daily, each meets a quarter of the families, and each family a quarter of them.
OF_SCORES = (
    "top_k", "top_p", "min_p", "typical", "eta", "epsilon", "no_repeat_ngram", "bad_words", "min_length", "forced_eos", "suppress",
    "renormalize", "repetition_penalty", "sequence_bias",
)  # fmt: skip
PARTNER = {family: ORDER[(i + 4) % len(ORDER)] for i, family in enumerate(ORDER)}


def generate(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens, and beam scores where there are any, from a fixed random state."""
    torch.manual_seed(5)
    out = model.generate(**{k: v.clone() for k, v in inputs.items()}, **options)
    if isinstance(out, torch.Tensor):
        return out, None
    return out.sequences, out.get("sequences_scores")


def same(got: tuple[torch.Tensor, torch.Tensor | None], expected: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    assert got[0].tolist() == expected[0].tolist()
    if expected[1] is not None:
        torch.testing.assert_close(got[1], expected[1], atol=1e-4, rtol=0)


def supported(family: str, strategy: str) -> bool:
    """What the family's own model can do in transformers."""
    if family in STATEFUL:
        # Guidance carries its own states on as `past_key_values`, which a model with `cache_params` never returns.
        return strategy not in {"static", "chunked_prefill", "guidance", *ASSISTED}
    return (family, strategy) != ("falcon", "static")  # its ALiBi bias is built for the prompt's length


def cases() -> list[Any]:
    table = []
    for family in FAMILIES:
        for strategy in {**STRATEGIES, **ON_THE_BASE_FIRST}:
            if supported(family, strategy) and supported(PARTNER[family], strategy):
                padding = "left" if (len(table) % 2 or family in {"gpt2", "opt"}) else "even"
                rare = strategy in OF_SCORES and (OF_SCORES.index(strategy) + ORDER.index(family)) % 4
                marks = [pytest.mark.nightly] if rare else []
                table.append(pytest.param(family, strategy, padding, id=f"{family}-{strategy}-{padding}", marks=marks))
    return table


@pytest.mark.parametrize("family, strategy, padding", cases())
def test_base_equal_to_reference_gives_the_tuned_model(family: str, strategy: str, padding: str) -> None:
    base, tuned = shared(family, 0), shared(PARTNER[family], 1)
    reference = copy.deepcopy(base)
    inputs, options = prompts(padding), options_for(strategy)
    expected = generate(tuned, inputs, **options)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    same(generate(model, inputs, **options), expected)
    if strategy not in ON_THE_BASE_FIRST:
        processor = EFTLogitsProcessor(tuned, reference, pad_token_id=0)
        same(generate(base, inputs, logits_processor=[processor], **options), expected)


@pytest.mark.parametrize("family, strategy, padding", cases()[::3])
def test_alpha_zero_gives_the_base(family: str, strategy: str, padding: str) -> None:
    base, tuned, reference = shared(family, 0), shared(PARTNER[family], 1), shared(PARTNER[family], 2)
    inputs, options = prompts(padding), options_for(strategy)
    expected = generate(base, inputs, **options)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, alpha=0.0)
    same(generate(model, inputs, **options), expected)
    processor = EFTLogitsProcessor(tuned, reference, alpha=0.0, pad_token_id=0)
    same(generate(base, inputs, logits_processor=[processor], **options), expected)


# Assisted decoding ------------------------------------------------------------------------------------------------------

ROLLING = [family for family in FAMILIES if family not in STATEFUL]


def assistants(model: EFTForCausalLM, tuned: Any, base: Any, outsider: Any) -> dict[str, Any]:
    return {"tuned": tuned, "base": base, "outsider": outsider, "itself": model}


@pytest.mark.parametrize("assistant", ["tuned", "base", "outsider", "itself"])
@pytest.mark.parametrize("family", ROLLING)
def test_assisted_decoding_gives_the_tuned_model(family: str, assistant: str) -> None:
    base, tuned, outsider = shared(family, 0), shared(_rolling_partner(family), 1), shared("llama", 9)
    reference = copy.deepcopy(base)
    inputs, options = prompts("one"), options_for("assisted", new_tokens=16)
    expected = generate(tuned, inputs, **options)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    helper = assistants(model, tuned, base, outsider)[assistant]
    same(generate(model, inputs, assistant_model=helper, **options), expected)
    if helper is not model:
        processor = EFTLogitsProcessor(tuned, reference)
        same(generate(base, inputs, assistant_model=helper, logits_processor=[processor], **options), expected)


@pytest.mark.parametrize("family", ROLLING)
def test_prompt_lookup_gives_the_tuned_model(family: str) -> None:
    base, tuned = shared(family, 0), shared(_rolling_partner(family), 1)
    reference = copy.deepcopy(base)
    inputs, options = prompts("one"), options_for("prompt_lookup", new_tokens=16)
    inputs = {name: value.repeat(1, 3) for name, value in inputs.items()}  # something to look up
    expected = generate(tuned, inputs, max_new_tokens=16)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    same(generate(model, inputs, **options), expected)
    processor = EFTLogitsProcessor(tuned, reference)
    same(generate(base, inputs, logits_processor=[processor], **options), expected)


def test_sampling_with_the_model_itself_as_assistant_gives_what_the_tuned_model_gives_with_itself() -> None:
    # Through transformers' own loop, whose random numbers are then drawn in the same order.
    base, tuned = shared("llama", 0), shared("qwen3", 1)
    inputs, options = prompts("one"), options_for("assisted_sample", new_tokens=16)
    expected = generate(tuned, inputs, assistant_model=tuned, **options)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=copy.deepcopy(base))
    same(generate(model, inputs, assistant_model=model, **options), expected)


def test_early_exit() -> None:
    base, tuned = shared("llama", 0), shared("qwen3", 1)
    reference = copy.deepcopy(base)
    inputs = prompts("one")
    expected = generate(tuned, inputs, max_new_tokens=12)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    same(generate(model, inputs, max_new_tokens=12, assistant_early_exit=1), expected)
    processor = EFTLogitsProcessor(tuned, reference)
    same(generate(base, inputs, max_new_tokens=12, assistant_early_exit=1, logits_processor=[processor]), expected)
    assert base.config.num_hidden_layers == 2


def test_recurrent_members_are_refused_by_name_where_transformers_would_roll_them_back() -> None:
    base, tuned = shared("llama", 0), shared("mamba", 1)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=shared("llama", 2))
    with pytest.raises(ValueError, match="rolls the members' states back itself, and recurrent ones cannot be: 'tuned'"):
        generate(model, prompts("one"), max_new_tokens=4, assistant_early_exit=1)


def _rolling_partner(family: str) -> str:
    return ROLLING[(ROLLING.index(family) + 3) % len(ROLLING)]


def test_members_on_accelerators_start_before_those_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    members = Members({"base": shared("llama", 0), "tuned": shared("gpt2", 1), "reference": shared("gpt2", 2)})
    started: list[str] = []
    monkeypatch.setattr(Member, "device", property(lambda member: torch.device("cpu" if member.name == "base" else "cuda")))
    monkeypatch.setattr(Member, "forward", lambda member, **_: started.append(member.name))
    members.step(torch.tensor([[3, 4]]))
    assert started == ["tuned", "reference", "base"]
