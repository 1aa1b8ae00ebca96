"""Identity 3: at every step and under every strategy, what a decoding strategy is shown equals the stateless oracle."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from families import EOS, FAMILIES, STATEFUL, options_for, prompts, shared
from transformers import LogitsProcessor

from hf_eft import Combination, EFTForCausalLM, EFTLogitsProcessor

ORDER = list(FAMILIES)
RECIPES = {
    "plain": Combination.emulate(),
    "alpha": Combination.emulate(alpha=0.6),
    "beta": Combination.emulate(beta=1.4),
}
STRATEGIES = [
    "greedy",
    "sample",
    "num_return_sequences",
    "beam",
    "beam_sample",
    "prompt_lookup",
    "static",
    "chunked_prefill",
    "no_cache",
]


class Probe(LogitsProcessor):
    """Records what the warpers and the strategy behind it are shown."""

    is_stateless = True

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Prompt lookup has its guesses processed with made-up scores: 1 everywhere (transformers), or far below 0 (ours).
        if not bool((scores == 1).all()) and float(scores.min()) > -1000:
            self.seen.append((input_ids.clone(), scores.clone()))
        return scores


def cases() -> list[Any]:
    table = []
    for i, family in enumerate(ORDER):
        small = ORDER[(i + 3) % len(ORDER)]
        for j, strategy in enumerate(STRATEGIES):
            if {family, small} & STATEFUL and strategy in {"prompt_lookup", "static", "chunked_prefill"}:
                continue
            if "falcon" in (family, small) and strategy == "static":
                continue
            padding = "one" if strategy == "prompt_lookup" else ["left", "even", "left"][(i + j) % 3]
            recipe = list(RECIPES)[(i + j) % len(RECIPES)]
            for leaf in ["wrapper", "processor"]:
                if (strategy, leaf) != ("prompt_lookup", "processor"):  # made-up scores cannot be told apart behind the add-on
                    case = (family, small, strategy, padding, recipe, leaf)
                    table.append(pytest.param(*case, id="-".join(case)))
    return table


@pytest.mark.parametrize("family, small, strategy, padding, recipe, leaf", cases())
def test_every_step_equals_the_oracle(family: str, small: str, strategy: str, padding: str, recipe: str, leaf: str) -> None:
    base, tuned, reference = shared(family, 0), shared(small, 1), shared(small, 2)
    combination = RECIPES[recipe]
    probe = Probe()
    inputs = prompts(padding)
    if strategy == "prompt_lookup":
        inputs = {name: value.repeat(1, 2) for name, value in inputs.items()}
    options = options_for(strategy, new_tokens=8)
    if leaf == "wrapper":
        model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=combination)
        said = model.generate(**inputs, logits_processor=[probe], **options)
    else:
        add_on = EFTLogitsProcessor(tuned, reference, combination=combination, pad_token_id=0)
        said = base.generate(**inputs, logits_processor=[add_on, probe], **options)

    members = {"base": base, "tuned": tuned, "reference": reference}
    mask = inputs["attention_mask"]
    assert len(probe.seen) >= 3 or (said[:, -3:] == EOS).any()  # unless it ended before
    for ids, scores in probe.seen:
        rows = mask.repeat_interleave(ids.shape[0] // mask.shape[0], dim=0)
        rows = torch.cat([rows, rows.new_ones(ids.shape[0], ids.shape[1] - mask.shape[1])], dim=1)
        expected = oracle.rows(members, combination.coefficients, ids, rows)
        torch.testing.assert_close(scores.log_softmax(-1).double(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("padding", ["one", "left"])
def test_several_tuned_members_share_one_reference(padding: str) -> None:
    base, reference = shared("llama", 0), shared("qwen3", 2)
    tuned = {"helpful": shared("qwen3", 1), "harmless": shared("gpt2", 3)}
    combination = Combination.steer({"helpful": 0.7, "harmless": 0.4})
    inputs = prompts(padding)
    members = {"base": base, **tuned, "reference": reference}
    expected = oracle.rows(members, combination.coefficients, inputs["input_ids"], inputs["attention_mask"])
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=combination)
    options = {"max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
    got = model.generate(**inputs, **options).scores[0]
    torch.testing.assert_close(got.log_softmax(-1).double(), expected, atol=2e-4, rtol=0)
    add_on = EFTLogitsProcessor(tuned, reference, combination=combination, pad_token_id=0)
    got = base.generate(**inputs, logits_processor=[add_on], **options).scores[0]
    torch.testing.assert_close(got.double(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in STATEFUL])
def test_forward_equals_the_oracle_at_every_position(family: str, padding: str) -> None:
    base, tuned, reference = shared(family, 0), shared(ORDER[(ORDER.index(family) + 3) % 10], 1), shared("gpt2", 2)
    members = {"base": base, "tuned": tuned, "reference": reference}
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    inputs = prompts("left")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if padding == "right":
        ids = torch.stack([row.roll(-int((keep == 0).sum())) for row, keep in zip(ids, mask, strict=True)])
        mask = torch.stack([keep.roll(-int((keep == 0).sum())) for keep in mask])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=positions).logits
    for row in range(ids.shape[0]):
        tokens = ids[row][mask[row].bool()]
        first = int(mask[row].argmax())
        for n in range(1, len(tokens) + 1):
            expected = oracle.log_probs(members, Combination.emulate().coefficients, tokens[:n])
            torch.testing.assert_close(logits[row, first + n - 1].log_softmax(-1).double(), expected, atol=2e-4, rtol=0)
