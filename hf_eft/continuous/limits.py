"""What cannot be batched continuously with the tokens that `generate` gives, and is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import ContinuousBatchingConfig

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM
    from ..speculative.request import Request

FULL, SLIDING = "full_attention", "sliding_attention"
# What `generate` takes beside ids and mask.
_INPUTS = {"inputs_embeds", "cache", "past_key_values", "position_ids", "member_input_ids"}
_ATTENTION = ("sdpa", "paged|eager")


def layer_types(config: Any) -> set[str]:
    """The kinds of a model's layers."""
    if (kinds := getattr(config, "layer_types", None)) is not None:
        return set(kinds)
    return {SLIDING if getattr(config, "sliding_window", None) is not None else FULL}


def resolve(model: EFTForCausalLM, generation_config: Any, config: ContinuousBatchingConfig | None) -> ContinuousBatchingConfig:
    r"""
    Check what is asked for, and choose what is left open.

    Args:
        model ([`EFTForCausalLM`]): The model.
        generation_config (`GenerationConfig`): How tokens are chosen.
        config (`ContinuousBatchingConfig`, *optional*): How requests are batched. Left as it is.

    Returns:
        `ContinuousBatchingConfig`: A copy, without what only works for one model.

    Raises:
        `NotImplementedError`: If a member, the recipe, the generation configuration or `config` asks for what cannot be exact.
    """
    for name, member in model._members.distinct.items():
        _check_member(name, member.model, model.device)
    if model.combination.scheduled:
        raise _refusal("the recipe's coefficients follow a schedule", "Give each request numbers")
    check_generation(model, generation_config)
    config = ContinuousBatchingConfig() if config is None else copy.deepcopy(config)
    wants = {
        "use_async_batching": config.use_async_batching,
        "use_cuda_graph": any(config.cuda_graph_booleans),
        "varlen_compile_config": config.varlen_compile_config,
        "decode_compile_config": config.decode_compile_config,
        "default_compile_level": config.default_compile_level,
    }
    if wanted := [name for name, value in wants.items() if value]:
        raise _refusal(f"`{wanted[0]}` is for one model", "Leave it out")
    config.use_async_batching, config.use_cuda_graph = False, False
    config.max_blocks_per_request = 0  # kernels that read the cache themselves know the geometry of one model
    return config


def _refusal(reason: str, remedy: str) -> NotImplementedError:
    return NotImplementedError(
        f"Continuous batching would not give the tokens of `generate`: {reason}. {remedy}, or use `generate`."
    )


def _check_member(name: str, model: Any, device: torch.device) -> None:
    config = model.config.get_text_config(decoder=True)
    kinds = layer_types(config)
    attention = model.config._attn_implementation
    if model.training:
        raise ValueError(f"The member {name!r} is in training mode, with dropout. Call `eval()` on it.")
    if getattr(model, "_is_stateful", False) or not kinds <= {FULL, SLIDING}:
        other = ", ".join(sorted(kinds - {FULL, SLIDING})) or "recurrent"
        raise _refusal(
            f"the member {name!r} ({type(model).__name__}) has {other} layers, whose states are not paged", "Choose another"
        )
    if not model._supports_attention_backend:
        raise _refusal(
            f"the member {name!r} ({type(model).__name__}) has an attention of its own, which cannot read a paged cache",
            "Choose another",
        )
    if attention not in _ATTENTION:
        raise _refusal(
            f"the member {name!r} uses the attention {attention!r}, which takes no masks of packed sequences",
            'Call `set_attn_implementation("sdpa")` on it',
        )
    if others := {str(parameter.device) for parameter in model.parameters()} - {str(device)}:
        raise _refusal(f"the member {name!r} is on {', '.join(sorted(others))}, the cache on {device}", "Move it there")


def check_generation(model: EFTForCausalLM, generation_config: Any) -> None:
    """Raise if tokens are to be chosen in a way that requests in a batch cannot be."""
    if (generation_config.num_beams or 1) > 1:
        raise _refusal(f"`num_beams` is {generation_config.num_beams}, and requests are not searched", "Leave it out")
    if generation_config.stop_strings:
        raise _refusal("`stop_strings` are not looked for", "Leave them out")
    for processor in model._get_logits_processor(generation_config, input_ids_seq_length=1):
        if not getattr(processor, "supports_continuous_batching", None):
            raise _refusal(
                f"{type(processor).__name__} needs what was said before, which is not at hand", "Leave its option out"
            )


def refuse_arguments(request: Request, kwargs: Mapping[str, Any]) -> None:
    """Raise if arguments of `generate`, which come here with `cache_implementation="paged"`, would be left out."""
    if request.prompts is not None:
        raise _refusal("`member_inputs` are prompts of other lengths", "Leave them out")
    if request.seed is not None:
        raise _refusal("`seed` and `coupling` are for rows of one batch", "Leave them out")
    if lost := _INPUTS & {name for name, value in kwargs.items() if value is not None}:
        raise _refusal(f"`{sorted(lost)[0]}` is not looked at", "Give ids alone")
    mask = kwargs.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise ValueError("Prompts that are batched continuously are not padded: give `generate_batch` a list of ids for each.")


def check_coefficient_row(coefficients: Sequence[float], names: tuple[str, ...]) -> tuple[float, ...]:
    """The coefficients of a request. Raise if they are not a finite number for each member."""
    row = tuple(float(value) for value in coefficients)
    if len(row) != len(names) or not all(map(math.isfinite, row)):
        raise ValueError(f"`coefficients` must be a finite number for each of {list(names)}, got {list(row)}.")
    return row
