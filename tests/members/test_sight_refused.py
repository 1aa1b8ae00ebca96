"""What cannot be together with pictures is refused, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import shared
from seeing import seeing, shown

from hf_eft import EFTForCausalLM

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


def gemma() -> EFTForCausalLM:
    return EFTForCausalLM.from_models(seeing("gemma3", 1), tuned=seeing("gemma3", 2), reference=seeing("gemma3", 3))


_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "chunks": ({"prefill_chunk_size": 4}, "`prefill_chunk_size` cuts a prompt into pieces"),
    "embeds": ({"inputs_embeds": torch.zeros(3, 4, 32)}, "`inputs_embeds` cannot be given with pictures"),
    "positions": ({"position_ids": torch.zeros(3, 4, dtype=torch.long)}, "`position_ids` cannot be given with pictures"),
    "encoded": ({"mm_encoder_outputs": {"image": torch.zeros(1)}}, "`mm_encoder_outputs` is no text and no picture"),
    "sounds": ({"input_features": torch.zeros(3, 4)}, "`input_features` is no text and no picture"),
    "early exit": ({"assistant_early_exit": 1}, "With `member_inputs` or pictures, a member"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_cannot_be_with_pictures_is_refused(name: str) -> None:
    model = gemma()
    given, (options, message) = shown("gemma3"), _REFUSED[name]
    with pytest.raises(ValueError, match=message):
        model.generate(**given.inputs, **GREEDY, **options)


def test_continuous_batching_is_refused() -> None:
    model = gemma()
    with pytest.raises(NotImplementedError, match="Continuous batching reads text alone"):
        model.generate(**shown("gemma3").inputs, **GREEDY, cache_implementation="paged")


def test_an_assistant_of_text_is_refused() -> None:
    model = gemma()
    with pytest.raises(ValueError, match=r"'assistant' \(LlamaForCausalLM\) does not take `pixel_values`"):
        model.generate(**shown("gemma3").inputs, **GREEDY, assistant_model=shared("llama", 1))
