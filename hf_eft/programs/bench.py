"""How fast the members, the combination and speculation are, on a user's models and machine."""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from .._version import __version__
from ..recipe.combination import BASE
from .timing import in_turn, ratio, seconds

if TYPE_CHECKING:
    from ..modeling_eft import EFTForCausalLM

PLAIN, SPECULATIVE = "combination", "speculative"


def bench(
    model: EFTForCausalLM,
    inputs: Mapping[str, torch.Tensor],
    *,
    new_tokens: int = 64,
    rounds: int = 5,
    done: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    r"""
    Greedy decoding of the same prompts by each member alone, by the combination, and by the combination with the tuned member drafting:
    taken in turn, after one run each that does not count. Every run generates `new_tokens` tokens a row.

    Args:
        model ([`EFTForCausalLM`]): The combination.
        inputs (`Mapping[str, torch.Tensor]`): `input_ids` and `attention_mask` of shape `(batch, length)`.
        new_tokens (`int`, *optional*, defaults to 64): How many tokens each row gets.
        rounds (`int`, *optional*, defaults to 5): How many times each is run; 2 or more.
        done (`Callable[[str], None]`, *optional*): Called after each run, with whose it was.

    Returns:
        `dict[str, Any]`: JSON-able. `systems`, by name: `tokens_per_second` of all rows together, and its speed over that of the
        combination and of the base, taken round by round: medians and quartiles over rounds. Beside it, what was run, on what.

    Raises:
        `ValueError`: If there are not two rounds.
    """
    if rounds < 2:
        raise ValueError(f"The spread needs 2 rounds or more, got {rounds}.")
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    options = {"do_sample": False, "num_beams": 1, "min_new_tokens": new_tokens, "max_new_tokens": new_tokens}

    def run(name: str, system: Any, **more: Any) -> None:
        system.generate(**inputs, **options, **more).cpu()  # what is on the way on an accelerator has arrived
        if done is not None:
            done(name)

    calls: dict[str, Callable[[], Any]] = {
        name: functools.partial(run, name, member) for name, member in distinct(model).items()
    }
    calls[PLAIN] = functools.partial(run, PLAIN, model)
    drafters = [name for name in model.combination.tuned_names if name in model.members]
    if drafters:
        calls[SPECULATIVE] = functools.partial(run, SPECULATIVE, model, assistant_model=model.members[drafters[0]])
    for call in calls.values():
        seconds(call)
    times = in_turn(calls, rounds)
    rows, length = inputs["input_ids"].shape
    systems: dict[str, dict[str, Any]] = {}
    for name, spent in times.items():
        low, middle, high = (rows * new_tokens / s for s in reversed(statistics.quantiles(spent, n=4)))
        systems[name] = {"tokens_per_second": {"median": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)]}}
        for against in (PLAIN, BASE):
            if against in times and name != against:
                systems[name][f"over_{against}"] = ratio(times, against, name)
    if drafters and model.speculation is not None:
        systems[SPECULATIVE]["tokens_per_round"] = round(model.speculation.tokens_per_round, 2)
    return {
        "systems": systems,
        "recipe": str(model.combination),
        "batch": rows,
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "rounds": rounds,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {"hf_eft": __version__, "torch": torch.__version__},
    }


def distinct(model: EFTForCausalLM) -> dict[str, Any]:
    """Each model once, under the first member that it serves as."""
    seen: dict[int, str] = {}
    return {name: member for name, member in model.members.items() if seen.setdefault(id(member), name) == name}
