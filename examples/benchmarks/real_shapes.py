"""Families in the shapes of models that people use, with random weights and an agreement that can be set."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """A decoder: layers, width, width within, heads, heads of keys, width of a head."""

    layers: int
    width: int
    within: int
    heads: int
    keys: int
    head: int


# By name, the large model, a small one and their vocabulary: Llama 3.1 8B and 3.2 1B; Qwen2.5 32B and 1.5B; what a CPU takes in a test.
FAMILIES: dict[str, tuple[Shape, Shape, int]] = {
    "8B + 2 x 1B": (Shape(32, 4096, 14336, 32, 8, 128), Shape(16, 2048, 8192, 32, 8, 64), 128_256),
    "32B + 2 x 1.5B": (Shape(64, 5120, 27648, 40, 8, 128), Shape(28, 1536, 8960, 12, 2, 128), 151_936),
    "tiny": (Shape(4, 128, 256, 4, 2, 32), Shape(2, 64, 128, 2, 1, 32), 512),
}
_SIGNAL = (
    6.5  # how far the token that follows stands out of the others, in their standard deviations, where no layer adds anything
)


def decoder(shape: Shape, vocab: int, follows: torch.Tensor, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
    """A random Llama to which the token `follows[t]` follows a token `t`, as far as its layers do not say otherwise."""
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=shape.width, intermediate_size=shape.within, num_hidden_layers=shape.layers, head_dim=shape.head,
        num_attention_heads=shape.heads, num_key_value_heads=shape.keys, tie_word_embeddings=False, bos_token_id=1, eos_token_id=None,
        pad_token_id=0, max_position_embeddings=8192, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
        embeddings.normal_(0, 1)
        # Of the vector of a row of the head, this share is the embedding of the token that it follows.
        share = _SIGNAL / shape.width**0.5
        head.normal_(0, (1 - share**2) ** 0.5)
        head[follows] += share * embeddings
        head.mul_(3 / shape.width**0.5)
    set_dial(model, 0.05)
    return model


@torch.no_grad()
def set_dial(model: Any, dial: float) -> None:
    """How much every half of a layer adds, in standard deviations of an embedding."""
    for layer in model.model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            # What goes in is of another size in each of the two; what comes out is measured by the weights alone.
            projection.weight.mul_(dial / float(projection.weight.float().std()) / projection.weight.shape[1] ** 0.5)


def family(name: str, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Any], torch.Tensor]:
    """The members, and which token follows which."""
    large, small, vocab = FAMILIES[name]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(vocab - 3, generator=generator) + 3
    follows = torch.arange(vocab)
    follows[order] = order.roll(-1)  # one circle of all tokens but the first three
    follows = follows.to(device)
    reference = decoder(small, vocab, follows, 1, device, dtype)
    tuned = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in tuned.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1 * float(parameter.float().std()))
    return {"base": decoder(large, vocab, follows, 2, device, dtype), "tuned": tuned, "reference": reference}, follows


def text(follows: torch.Tensor, rows: int, length: int, kept: float, seed: int = 3) -> torch.Tensor:
    """Tokens, `(rows, length)`, each of which follows the one before it in the circle with this probability."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, len(follows), (rows, length), generator=generator).to(follows.device)
    keeps = (torch.rand(rows, length, generator=generator) < kept).to(follows.device)
    for i in range(1, length):
        tokens[:, i] = torch.where(keeps[:, i], follows[tokens[:, i - 1]], tokens[:, i])
    return tokens


@torch.no_grad()
def find_dial(
    members: Mapping[str, Any], follows: torch.Tensor, wanted: float, rows: int = 4, length: int = 256
) -> tuple[float, float]:
    """Bisect for how much the base's layers add, so that the tuned model's token is the combination's so often: the dial, and how often."""
    tokens = text(follows, rows, length, wanted)
    tuned = members["tuned"](tokens).logits.float()
    delta, drafted = tuned - members["reference"](tokens).logits.float(), tuned.argmax(-1)
    low, high = 0.01, 30.0
    dial = agreement = 0.0
    for _ in range(14):
        dial = (low * high) ** 0.5
        set_dial(members["base"], dial)
        target = (members["base"](tokens).logits.float() + delta).argmax(-1)
        agreement = float((target == drafted)[:, 32:].float().mean())
        if abs(agreement - wanted) < 0.004:
            break
        low, high = (dial, high) if agreement > wanted else (low, dial)
    return dial, agreement
