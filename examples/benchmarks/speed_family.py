"""A family for measuring speed: real costs, and an agreement between drafter and target that can be set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3_5ForCausalLM, Qwen3_5TextConfig

VOCAB = 4_000


def llama(layers: int, width: int, vocab: int = VOCAB) -> LlamaForCausalLM:
    """A random Llama whose next-token distributions are peaked, as a trained one's are."""
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=None, pad_token_id=0, max_position_embeddings=8192,
    )  # fmt: skip
    return _peaked(LlamaForCausalLM(config), width)


def hybrid(layers: int, width: int, vocab: int = VOCAB) -> Qwen3_5ForCausalLM:
    """The same with a gated delta rule in three layers of four, as Qwen3.5 has it."""
    heads = width // 64
    config = Qwen3_5TextConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers, head_dim=64,
        num_attention_heads=heads, num_key_value_heads=heads, linear_num_key_heads=heads, linear_num_value_heads=heads,
        linear_key_head_dim=64, linear_value_head_dim=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=None,
        pad_token_id=0, layer_types=["full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers)],
    )  # fmt: skip
    return _peaked(Qwen3_5ForCausalLM(config), width)


def _peaked(model: Any, width: int) -> Any:
    model.eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 6 / width**0.5)
        model.model.embed_tokens.weight.normal_(0, 1)
    return model


def speed_family(
    layers: int, small_layers: int, width: int, dial: float, seed: int = 0, make: Callable[[int, int], Any] = llama
) -> dict[str, Any]:
    """
    A base of `layers` layers whose first are the small reference's and whose others add little: their outputs are scaled by `dial`. At 0
    the combination is the tuned model itself; the larger the dial, the less they agree.
    """
    torch.manual_seed(seed)
    reference = make(small_layers, width)
    tuned = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in tuned.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.2 * float(parameter.std()))
    base = make(layers, width)
    base.load_state_dict(base.state_dict() | reference.state_dict())
    set_dial(base, small_layers, dial)
    return {"base": base, "tuned": tuned, "reference": reference}


@torch.no_grad()
def set_dial(base: Any, small_layers: int, dial: float) -> None:
    """Scale what the layers beyond the small model's add."""
    for layer in base.model.layers[small_layers:]:
        mixer = layer.self_attn.o_proj if hasattr(layer, "self_attn") else layer.linear_attn.out_proj
        for projection in (mixer, layer.mlp.down_proj):
            norm = projection.weight.norm()
            projection.weight.mul_(dial / norm * projection.weight.shape[0] ** 0.5 if norm > 0 else 0.0)


def find_dial(
    model: Any,
    small_layers: int,
    wanted: float,
    tokens: int = 160,
    tolerance: float = 0.006,
    predict: Callable[[Any, torch.Tensor], torch.Tensor] = lambda model, ids: model.tuned(ids).logits,
) -> float:
    """Bisect for the dial at which a drafter's greedy choice agrees with the combination's on `wanted` of the tokens."""
    prompts = torch.randint(3, VOCAB, (8, 8), generator=torch.Generator().manual_seed(1))
    low, high, agreement = 0.001, 1.0, 0.0
    for _ in range(12):
        dial = (low * high) ** 0.5
        set_dial(model.base, small_layers, dial)
        ids = model.generate(prompts, max_new_tokens=tokens // 4, do_sample=False)
        with torch.no_grad():
            predicted = predict(model, ids)[:, prompts.shape[1] - 1 : -1].argmax(-1)
        agreement = float((predicted == ids[:, prompts.shape[1] :]).float().mean())
        if abs(agreement - wanted) < tolerance:
            break
        low, high = (dial, high) if agreement > wanted else (low, dial)
    return agreement
