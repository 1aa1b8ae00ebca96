"""What TRL puts in the place of a model's `forward`, for a model that is no body with one head."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch

_OURS = {"temperature", "outputs", "cast_lm_head_to_fp32"}


def taken(model: Any, forward: Any) -> Any:
    r"""
    What is to be a model's `forward`, if a trainer assigns this.

    TRL's trainers want numbers for each token (`fused_lm_head=True`) in place of logits, and replace `forward` by one that computes them
    from the states of one body and the weights of one head. Here they are made of all members, in pieces.

    Args:
        model ([`EFTInPieces`]): Whose.
        forward (`Any`): What is assigned.

    Raises:
        `ValueError`: If it wants something of a head that a combination does not have; `TypeError`: If it is of a release of TRL whose
            `forward` is not made of what is known.
    """
    function = getattr(forward, "__func__", None)
    if function is None or "fused_lm_head" not in inspect.signature(function, follow_wrapped=False).parameters:
        return forward
    asked: Mapping[str, Any] = inspect.getclosurevars(function).nonlocals
    # `cast_lm_head_to_fp32` and `outputs` are there only where they are used.
    if missing := _OURS - asked.keys():
        raise TypeError(
            f"This release of TRL replaces `forward` in another way than the one that is known: it has no {sorted(missing)}. Use a release "
            "that `pip install 'hf-eft[train]'` allows."
        )
    if asked["cast_lm_head_to_fp32"]:
        raise ValueError(
            "`cast_lm_head_to_fp32` is for a model with one head; members are combined in float32 already. Leave it out."
        )
    return MethodType(_replacement(type(model), float(asked["temperature"]), tuple(asked["outputs"])), model)


def _replacement(kind: Any, temperature: float, wanted: tuple[str, ...]) -> Any:
    @functools.wraps(kind.forward)  # `generate` looks at the arguments
    def forward(model: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return kind.forward(model, *args, **kwargs)
        return _per_token(model, wanted, temperature, *args, **kwargs)

    return forward


def _per_token(
    model: Any,
    wanted: tuple[str, ...],
    temperature: float,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: Any = None,
    **kwargs: Any,
) -> Any:
    from trl.trainer.utils import FusedCausalLMOutput

    with model._reading(input_ids, attention_mask, position_ids, kwargs) as loss:
        targets = loss.targets(labels, shift_labels)
        where, numbers = loss.numbers(targets, wanted, temperature)
        targets = targets if shift_labels is not None else targets[:, :-1]  # the last predicts nothing
        rows, columns = where.unbind(-1)
        spread = {
            key: values.new_zeros(targets.shape).index_put((rows.to(values.device), columns.to(values.device)), values)
            for key, values in numbers.items()
        }
        count = max(1, len(where)) if num_items_in_batch is None else num_items_in_batch
    mask = (targets != -100).to(spread["log_probs"].device)
    return FusedCausalLMOutput(loss=-spread["log_probs"].sum() / count, label_mask=mask, **spread)
