"""What stands in for a tower of the package timm, which reads the pictures of Gemma 3n and is no part of transformers: one convolution."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, Gemma3nVisionConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

PATCH = 4


class Tower(PreTrainedModel):
    """A vector for each patch, `(pictures, width, rows, columns)`, as a network of convolutions gives it."""

    config_class = Gemma3nVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.patches = torch.nn.Conv2d(3, config.hidden_size, PATCH, PATCH)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.patches(pixel_values))


AutoModel.register(Gemma3nVisionConfig, Tower, exist_ok=True)
