"""Going on from a cache that holds a member's own prompt with padding: with its mask, or refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import VOCAB, shared
from seeing import log_probs, seeing, shown

from hf_eft import EFTForCausalLM
from hf_eft.members.releases import CACHE, cache_of

SAYS = r"holds a prompt of the member 'tuned' with padding.*`member_inputs=\{'tuned': \{'attention_mask': \.\.\.\}\}`"
NEXT = torch.tensor([[31], [32]])


def text(padded: bool = True) -> tuple[EFTForCausalLM, dict[str, Any], Any]:
    """Members of text, what the first call is given, and the formula for a row and what was written since."""
    models = [shared("llama", seed) for seed in (1, 2, 3)]
    generator = torch.Generator().manual_seed(0)
    ids, own = (torch.randint(20, VOCAB, (2, length), generator=generator) for length in (4, 6))
    mask = torch.ones_like(own)
    if padded:
        mask[0, :2] = 0

    def expected(row: int, written: torch.Tensor) -> torch.Tensor:
        prompts = [ids[row], own[row][mask[row].bool()], ids[row]]
        terms = [(c, model, None, prompt, {}) for c, model, prompt in zip((1, 1, -1), models, prompts, strict=True)]
        return log_probs(terms, written)[-1]

    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    return model, {"input_ids": ids, "member_inputs": {"tuned": {"input_ids": own, "attention_mask": mask}}}, expected


def pictures() -> tuple[EFTForCausalLM, dict[str, Any], Any]:
    """The same with members that see, each prompts and pictures of its own."""
    families = {"base": "qwen2_vl", "tuned": "gemma3", "reference": "qwen2_vl"}
    models = [seeing(family, seed) for seed, family in enumerate(families.values(), start=1)]
    given = {name: shown(family, (1, 1), (2, 5), seed=i) for i, (name, family) in enumerate(families.items())}
    given["reference"] = given["base"]

    def expected(row: int, written: torch.Tensor) -> torch.Tensor:
        terms = [
            (c, model, each.family, *each.row(row)) for c, model, each in zip((1, 1, -1), models, given.values(), strict=True)
        ]
        return log_probs(terms, written)[-1]

    model = EFTForCausalLM.from_models(models[0], tuned=models[1], reference=models[2])
    return model, {**given["base"].inputs, "member_inputs": {"tuned": given["tuned"].inputs}}, expected


@pytest.mark.parametrize("case", [text, pictures])
@torch.no_grad()
def test_forward_goes_on_with_the_mask_or_not_at_all(case: Any) -> None:
    model, first, expected = case()
    cache = cache_of(model(**first, use_cache=True))
    longer = {name: torch.cat([mask, torch.ones_like(NEXT)], -1) for name, mask in (
        ("common", first.get("attention_mask", torch.ones_like(first["input_ids"]))),
        ("tuned", first["member_inputs"]["tuned"]["attention_mask"]),
    )}  # fmt: skip
    common = {"input_ids": NEXT, "attention_mask": longer["common"]}
    with pytest.raises(ValueError, match=SAYS):
        model(**common, **{CACHE: copy.deepcopy(cache)})
    with pytest.raises(ValueError, match=SAYS):
        model(**common, **{CACHE: copy.deepcopy(cache)}, member_inputs={"reference": {"attention_mask": longer["common"]}})
    if case is pictures:  # whose positions are known to the cache, and given with a mask by nobody but `generate`
        return
    got = model(**common, **{CACHE: cache}, member_inputs={"tuned": {"attention_mask": longer["tuned"]}}).logits[:, -1]
    for row in range(2):
        torch.testing.assert_close(got[row].double().log_softmax(-1), expected(row, NEXT[row]), atol=5e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"coupling": "match", "seed": 1, "do_sample": True}], ids=["greedy", "match"])
def test_generate_goes_on_with_the_prompts_or_not_at_all(options: dict[str, Any]) -> None:
    model, first, _ = text()
    made = {"max_new_tokens": 3, "eos_token_id": None, **options}
    out = model.generate(**first, **made, return_dict_in_generate=True)
    with pytest.raises(ValueError, match=SAYS):
        model.generate(out.sequences, **made, **{CACHE: cache_of(out)})


@torch.no_grad()
def test_without_padding_nothing_needs_to_be_said() -> None:
    model, first, expected = text(padded=False)
    cache = cache_of(model(**first, use_cache=True))
    got = model(NEXT, **{CACHE: cache}).logits[:, -1]
    for row in range(2):
        torch.testing.assert_close(got[row].double().log_softmax(-1), expected(row, NEXT[row]), atol=5e-4, rtol=0)


@torch.no_grad()
def test_a_cache_that_is_emptied_holds_no_padding() -> None:
    model, first, _ = text()
    cache = cache_of(model(**first, use_cache=True))
    cache.reset()
    plain = {"input_ids": first["input_ids"]}
    torch.testing.assert_close(model(**plain, **{CACHE: cache}).logits, model(**plain).logits)
