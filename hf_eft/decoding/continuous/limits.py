"""What cannot be batched continuously with the tokens that `generate` gives, and is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

from ...members.combined import Generates
from ...members.member import Member
from ...members.quantised import check_alone
from ...recipe.combination import Combination
from ...recipe.phases import ANSWER
from .options import refusal

if TYPE_CHECKING:
    from ..speculative.request import Request

FULL, SLIDING = "full_attention", "sliding_attention"
# Arguments of `generate` that a batch does not read, and those that it has no use for: what they are for is refused.
_NOT_READ = {
    "assistant_model", "cache", "inputs_embeds", "logits_processor", "member_input_ids", "negative_prompt_attention_mask",
    "negative_prompt_ids", "past_key_values", "position_ids", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer",
    "synced_gpus",
}  # fmt: skip
_OF_NO_USE = {"assistant_tokenizer", "attention_mask", "custom_generate", "tokenizer"}
_ATTENTION = ("sdpa", "paged|eager")
# Fields of a `ContinuousBatchingConfig`, with the value that asks for nothing: kernels that read the cache themselves, graphs and
# compiled passes know the geometry of one model.
_FOR_ONE_MODEL = {
    "use_async_batching": False,
    "use_cuda_graph": False,
    "varlen_compile_config": None,
    "decode_compile_config": None,
    "default_compile_level": 0,
    "max_blocks_per_request": 0,
    "q_padding_interval_size": 0,
    "kv_padding_interval_size": 0,
}


def layer_types(config: Any) -> set[str]:
    """The kinds of a model's layers."""
    if (kinds := getattr(config, "layer_types", None)) is not None:
        return set(kinds)
    return {SLIDING if getattr(config, "sliding_window", None) is not None else FULL}


def resolve(model: Generates, config: ContinuousBatchingConfig | None) -> ContinuousBatchingConfig:
    r"""
    Check what is asked for, and choose what is left open.

    Args:
        model ([`EFTForCausalLM`]): The model.
        config (`ContinuousBatchingConfig`, *optional*): How requests are batched. Left as it is.

    Returns:
        `ContinuousBatchingConfig`: A copy, without what only works for one model.

    Raises:
        `NotImplementedError`: If a member, the recipe or `config` asks for what cannot be exact.
        `ValueError`: If `config` names a scheduler that is not there.
    """
    check_model(model)
    config = ContinuousBatchingConfig() if config is None else copy.deepcopy(config)
    for name, nothing in _FOR_ONE_MODEL.items():
        value = getattr(config, name)
        if any(value) if isinstance(value, tuple) else value not in (None, nothing):
            raise refusal(f"`{name}` is for one model", "Leave it out")
    if config.scheduler_type not in SCHEDULER_MAPPING:
        raise ValueError(f"There is no scheduler {config.scheduler_type!r}: choose one of {sorted(SCHEDULER_MAPPING)}.")
    config.use_async_batching, config.use_cuda_graph = False, False
    config.max_blocks_per_request = 0
    return config


def check_model(model: Generates) -> None:
    """Raise if a member or the recipe cannot be batched continuously."""
    for name, member in model._members.distinct.items():
        _check_member(name, member, model.device)
    if model.combination.scheduled:
        raise refusal("the recipe's coefficients follow a schedule", "Give each request numbers")


def _check_member(name: str, member: Member, device: torch.device) -> None:
    model: Any = member.model
    config = model.config.get_text_config(decoder=True)
    kinds = layer_types(config)
    attention = model.config._attn_implementation
    if model.training:
        raise ValueError(f"The member {name!r} is in training mode, with dropout. Call `eval()` on it.")
    check_alone(name, model)
    if getattr(model, "_is_stateful", False) or not kinds <= {FULL, SLIDING}:
        other = ", ".join(sorted(kinds - {FULL, SLIDING})) or "recurrent"
        raise refusal(
            f"the member {name!r} ({type(model).__name__}) has {other} layers, whose states are not paged", "Choose another"
        )
    if not model._supports_attention_backend:
        raise refusal(
            f"the member {name!r} ({type(model).__name__}) has an attention of its own, which cannot read a paged cache",
            "Choose another",
        )
    if "position_ids" not in member.accepts:
        raise refusal(
            f"the member {name!r} ({type(model).__name__}) takes no `position_ids`, and tokens of several sequences are read at once",
            "Choose another",
        )
    if len({(find_num_key_value_heads(layer), find_head_dim(layer)) for layer in config.per_layer_config}) > 1:
        raise refusal(
            f"the member {name!r} ({type(model).__name__}) has layers with heads of different sizes or numbers, and a page has one",
            "Choose another",
        )
    if attention not in _ATTENTION:
        raise refusal(
            f"the member {name!r} uses the attention {attention!r}, which takes no masks of packed sequences",
            'Call `set_attn_implementation("sdpa")` on it',
        )
    if others := {str(parameter.device) for parameter in model.parameters()} - {str(device)}:
        raise refusal(f"the member {name!r} is on {', '.join(sorted(others))}, the cache on {device}", "Move it there")


def check_arguments(request: Request, arguments: Mapping[str, Any]) -> dict[str, Any]:
    r"""
    The options among the arguments of a call, some of which are `generate`'s and come here with `cache_implementation="paged"`.

    Args:
        request ([`Request`]): What the call asks for beside them.
        arguments (`Mapping[str, Any]`): The arguments.

    Raises:
        `NotImplementedError`: If one of them would be left out.
        `ValueError`: If the prompts are padded.
    """
    if request.prompts is not None:
        raise refusal("`member_inputs` are prompts of other lengths", "Leave them out")
    if request.seed is not None:
        raise refusal("`seed` and `coupling` are for rows of one batch", "Leave them out")
    for name in _NOT_READ & arguments.keys():
        value = arguments[name]
        if not (value is None or value is False or (isinstance(value, list) and not value)):
            raise refusal(f"`{name}` is not looked at", "Leave it out")
    mask = arguments.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise ValueError("Prompts that are batched continuously are not padded: give `generate_batch` a list of ids for each.")
    return {name: value for name, value in arguments.items() if name not in _NOT_READ | _OF_NO_USE}


def check_options(options: Mapping[str, Any], known: Mapping[str, type], vocab_size: int) -> dict[str, Any]:
    r"""
    A request's own options of how its tokens are chosen, in the form that a batch takes them in.

    Raises:
        `TypeError`: If one is not of its type.
        `ValueError`: If the batch has no such option, or one is out of its range: it would end the batch for all.
    """
    options = {
        name: float(value) if known.get(name) is float and type(value) is int else value for name, value in options.items()
    }
    for name, value in options.items():
        if name not in known:
            has = f"those of this batch are {sorted(known)}" if known else "this batch has none"
            raise ValueError(
                f"A request cannot have `{name}` of its own: {has}. `per_request_processors=True` in the `ContinuousBatchingConfig` lets "
                "requests differ in `temperature`, `top_k` and `top_p`, where the `generation_config` samples and sets them."
            )
        if not isinstance(value, known[name]) or isinstance(value, bool):
            raise TypeError(f"`{name}` of a request must be of the type {known[name].__name__}, got {value!r}.")
    if not 0 < options.get("temperature", 1.0) < math.inf:
        raise ValueError(
            f"`temperature` must be a positive number, got {options['temperature']}. For greedy tokens, use `top_k=1`."
        )
    if not 0 < options.get("top_p", 1.0) <= 1:
        raise ValueError(f"`top_p` must be above 0 and at most 1, got {options['top_p']}.")
    if (kept := options.get("top_k")) is not None:
        if kept < 0:
            raise ValueError(f"`top_k` must be 0, for all tokens, or more, got {kept}.")
        options["top_k"] = min(kept or vocab_size, vocab_size)
    return options


def check_coefficient_rows(coefficients: Any, names: tuple[str, ...], recipe: Combination) -> tuple[Any, ...]:
    """The coefficients of a request, a row or a row for each phase. Raise a `ValueError` if they are none."""
    if not isinstance(coefficients, Mapping):
        return _checked_row(coefficients, names, recipe)
    phases = [phase.name for phase in recipe.phases]
    expected = [ANSWER, *phases]
    if not phases or set(coefficients) != set(expected):
        has = (
            f"it has the phases {expected}"
            if phases
            else "it has none: give the model one, as in `Combination(..., phases=[Phase()])`"
        )
        raise ValueError(f"`coefficients` are by phase, {list(coefficients)}, of which the recipe must know each; {has}.")
    return tuple(_checked_row(coefficients[phase], names, recipe) for phase in expected)


def _checked_row(coefficients: Sequence[float], names: tuple[str, ...], recipe: Combination) -> tuple[float, ...]:
    row = tuple(float(value) for value in coefficients)
    by_rule = [math.isnan(value) and name in recipe.ruled for name, value in zip(names, row, strict=False)]
    if len(row) != len(names) or not all(ruled or math.isfinite(value) for ruled, value in zip(by_rule, row, strict=True)):
        raise ValueError(f"`coefficients` must be a finite number for each of {list(names)}, got {list(row)}.")
    return row
