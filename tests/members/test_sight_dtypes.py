"""Members of different dtypes are given the same pixels: each reads them in its own."""

from __future__ import annotations

import copy
from typing import Any

import architecture_sight
import pytest
import torch
from seeing import seeing, shown

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

FAMILIES = ["qwen2_vl", "gemma3", "llava", "lfm3_vl"]  # the last casts nothing itself


def three(family: str, dtypes: tuple[torch.dtype, ...]) -> tuple[list[Any], dict[str, Any]]:
    """Members of these dtypes, and a prompt with a picture in float32."""
    if family == "lfm3_vl":
        models = [architecture_sight.build(family, seed) for seed in (1, 2, 3)]
        inputs = architecture_sight.prompts(models[0], [3], architecture_sight.picture(models[0]))
    else:
        models, inputs = [seeing(family, seed) for seed in (1, 2, 3)], shown(family, (1,), (3,)).inputs
    return [copy.deepcopy(each).to(dtype) for each, dtype in zip(models, dtypes, strict=True)], inputs


def alone(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What a model says of all positions, `(length, vocab)`, given pixels in its own dtype."""
    own = {
        name: value.to(model.dtype) if "pixel" in name and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    with torch.no_grad():
        found: torch.Tensor = model(**own).logits[0].float()
    return found


@pytest.mark.parametrize("pixels", [torch.float32, torch.bfloat16], ids=["float_pixels", "half_pixels"])
@pytest.mark.parametrize("dtypes", ["base_whole", "base_half"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_member_reads_pixels_in_its_own_dtype(family: str, dtypes: str, pixels: torch.dtype) -> None:
    whole, half = torch.float32, torch.bfloat16
    models, inputs = three(family, (whole, half, half) if dtypes == "base_whole" else (half, whole, half))
    inputs = {n: v.to(pixels) if "pixel" in n and v.is_floating_point() else v for n, v in inputs.items()}
    base, tuned, reference = models
    read = [alone(model, inputs) for model in models]
    expected = (read[0] + read[1] - read[2]).log_softmax(-1)
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    got = model(**inputs).logits[0].float().log_softmax(-1)
    # (Members of half precision round what is of the order of 1 by hundredths.)
    torch.testing.assert_close(got, expected, atol=3e-2, rtol=0)
    options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
    out = model.generate(**inputs, **options, output_logits=True)
    torch.testing.assert_close(out.logits[0][0].float().log_softmax(-1), expected[-1], atol=0.15, rtol=0)
    if family != "lfm3_vl" or pixels == base.dtype:  # whose own call would end in an error
        added = base.generate(**inputs, **options, output_scores=True, logits_processor=[EFTLogitsProcessor(tuned, reference)])
        torch.testing.assert_close(added.scores[0][0].float().log_softmax(-1), expected[-1], atol=0.15, rtol=0)
