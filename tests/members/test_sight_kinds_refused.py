"""Kinds of models that see are refused by name where what they keep of a picture, or of a prompt, cannot be followed."""

from __future__ import annotations

import architecture_sight
import pytest
import torch
from architecture_models import build
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from hf_eft import EFTForCausalLM, EFTLogitsProcessor

REFUSED = {
    "git": r"\(GitForCausalLM\) read 6 tokens, but its cache holds 23 instead of 6",  # the picture before the text
    "idefics": r"\(IdeficsForVisionText2Text\) generates from pictures in a way of its own",
    "mllama": r"\(MllamaForConditionalGeneration\) generates from pictures in a way of its own",
}


@pytest.mark.parametrize("leaf", ["wrapper", "add-on"])
@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_done_with_a_picture_in_a_way_of_its_own_is_refused(model_type: str, leaf: str) -> None:
    base, tuned, reference = (architecture_sight.build(model_type, seed) for seed in (1, 2, 3))
    inputs = architecture_sight.prompts(base, [3], architecture_sight.picture(base))
    with pytest.raises(ValueError, match=REFUSED[model_type]):
        if leaf == "wrapper":
            EFTForCausalLM.from_models(base, tuned, reference).generate(**inputs, max_new_tokens=3)
        else:
            base.generate(**inputs, logits_processor=[EFTLogitsProcessor(tuned, reference)], max_new_tokens=3)


@pytest.mark.skipif("unlimited_ocr" not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, reason="transformers has no such model")
def test_rows_of_a_cache_that_keeps_the_prompt_apart_are_not_moved() -> None:
    base, tuned, reference = (architecture_sight.build("unlimited_ocr", seed) for seed in (1, 2, 3))
    model = EFTForCausalLM.from_models(base, tuned, reference)
    inputs = architecture_sight.prompts(base, [2, 5], architecture_sight.picture(base))
    with pytest.raises(
        ValueError, match=r"reads? the text alone: its states are in a cache that keeps the prompt apart\. Speculate"
    ):
        model.generate(**inputs, assistant_model=tuned, num_assistant_tokens=3, max_new_tokens=3)


@pytest.mark.parametrize("leaf", ["wrapper", "add-on"])
def test_pictures_that_are_encoded_all_in_one_are_not_shown_to_several_rows(leaf: str) -> None:
    base, tuned, reference = (architecture_sight.build("fuyu", seed) for seed in (1, 2, 3))
    inputs = architecture_sight.prompts(base, [3], architecture_sight.picture(base))
    told = r"\(FuyuForCausalLM\) encodes its pictures with the prompt, or all in one"
    with pytest.raises(ValueError, match=told):
        if leaf == "wrapper":
            EFTForCausalLM.from_models(base, tuned, reference).generate(**inputs, num_beams=2, max_new_tokens=3)
        else:
            mask = torch.ones(1, 3, dtype=torch.long)
            add_on = EFTLogitsProcessor(
                tuned, reference, attention_mask=mask, member_inputs=dict.fromkeys(("tuned", "reference"), inputs)
            )
            prompt = {"input_ids": inputs["input_ids"][:, :3], "attention_mask": mask}
            build("llama", 9).generate(**prompt, logits_processor=[add_on], num_beams=2, max_new_tokens=3)
