"""What tells a base from others: its shape, wherever its configuration has it, and some of its weights."""

from __future__ import annotations

import torch
from families import build
from transformers import Gemma3Config

from hf_eft.files.learnt import Base
from hf_eft.members.learnt import describe_base, shape_of


def test_the_shape_is_that_of_the_text_of_a_model_that_reads_more() -> None:
    text = {"hidden_size": 48, "num_hidden_layers": 3, "vocab_size": 200}
    config = Gemma3Config(text_config=text, vision_config={"hidden_size": 16, "num_hidden_layers": 1})
    assert shape_of(config, "owner/large", None) == Base("gemma3", 48, 3, 200, name="owner/large")


@torch.no_grad()
def test_sixty_four_rows_from_the_first_to_the_last_are_looked_at() -> None:
    base = build("llama", 0, vocab_size=200)
    weight = base.get_input_embeddings().weight  # (200, 32)
    sample, looked_at = describe_base(base).sample, []
    for row in range(len(weight)):
        kept = weight[row].clone()
        weight[row] += 1
        if describe_base(base).sample != sample:
            looked_at.append(row)
        weight[row] = kept
    assert len(looked_at) == 64 and looked_at[0] == 0 and looked_at[-1] == 199
    assert describe_base(base).sample == sample
