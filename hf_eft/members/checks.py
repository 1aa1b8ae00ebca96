"""What is refused before or after a step: models that cannot be members, inputs of a wrong shape, logits that are no distribution."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from .cache import EFTCache
from .quantised import check_intact
from .recurrent import rows_of
from .releases import cache_argument


def check_finite(logits: torch.Tensor, name: str, attention_mask: Any = None) -> None:
    """
    Raise if a row of `logits`, `(batch, positions, vocab)`, is not a distribution: NaN, `+inf`, or `-inf` for every token.
    Positions that the mask calls padding are nobody's business.
    """
    top = logits.detach().amax(-1)  # NaN wins, then +inf; -inf only if there is nothing else
    if math.isfinite(float(top.sum())):  # all are, which is looked at first
        return
    wrong = ~torch.isfinite(top)  # (batch, positions)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        seen = attention_mask[:, -wrong.shape[1] :].to(wrong.device).bool()
        if seen.shape == wrong.shape:
            wrong &= seen
    if wrong.any():
        row, position = wrong.nonzero()[0].tolist()
        from_end = position - wrong.shape[1]
        raise FloatingPointError(
            f"The member {name!r} returned logits that are no distribution (their maximum is {top[row, position].item()}) in "
            f"row {row}, at position {from_end} from the end of this step. Expected finite logits: check its weights and its "
            "dtype (float16 overflows where bfloat16 does not)."
        )


class Finite:
    """Whether members' logits, by name, are finite: a tensor that says so, on their device, and the error if they are not."""

    def __init__(self, logits: Mapping[str, torch.Tensor], attention_mask: Any) -> None:
        self._logits, self._mask = logits, attention_mask
        # One look for all members: on an accelerator each look waits for it.
        self.holds = torch.stack([values.detach().amax(-1).isfinite().all() for values in logits.values()]).all()

    def refuse(self) -> None:
        """Raise, naming member, row and position, unless it is padding that is not finite."""
        for name, values in self._logits.items():
            check_finite(values, name, self._mask)


def check_model(name: str, model: Any) -> None:
    """Raise if a member is not a decoder-only language model of transformers that takes a cache."""
    if model is None:
        raise ValueError(f"The member {name!r} is missing: expected a causal language model, got None.")
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            f"The member {name!r} is wrapped by `torch.compile`, so that it is no model of transformers. Compile it in place, "
            "`model.compile()`, and give the model itself."
        )
    config = getattr(model, "config", None)
    if not isinstance(model, torch.nn.Module) or config is None:
        raise TypeError(
            f"The member {name!r} must be a model of transformers, got {type(model).__name__}. Load it with "
            "`AutoModelForCausalLM.from_pretrained(...)`, or give the folder of an adapter."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"The member {name!r} is an encoder-decoder ({type(model).__name__}); emulated fine-tuning combines decoder-only "
            "language models. Give a causal language model."
        )
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) has no language modeling head. Load it with `AutoModelForCausalLM`."
        )
    if not isinstance(model, GenerationMixin):
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) is not run by the `generate` of transformers, which writes one token after "
            "another, but by one of its own (of blocks of tokens at once, say). Give a causal language model."
        )
    if cache_argument(inspect.signature(model.forward).parameters) is None:
        raise ValueError(
            f"The member {name!r} ({type(model).__name__}) does not take a `Cache` of transformers, so that its states cannot "
            "be carried along. Give a model that takes `cache` (`past_key_values` before transformers 5.24)."
        )
    _check_cache(name, model)
    check_intact(name, model)


def _check_cache(name: str, model: PreTrainedModel) -> None:
    """Raise if what a member keeps of a text is not what `generate` keeps, or if it is not told positions as `generate` tells them."""
    who = f"The member {name!r} ({type(model).__name__})"
    if not model._supports_default_dynamic_cache():
        raise ValueError(
            f"{who} keeps its states in a cache of its own, which `generate` cannot carry along with those of other members. Give a model "
            "that takes the `DynamicCache` of transformers."
        )
    try:
        DynamicCache(config=model.config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{who} has a configuration that no cache can be made from ({error}). Give a model that `generate` can run with a cache."
        ) from error
    if any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules()) and (
        "position_ids" in inspect.signature(model.forward).parameters
    ):
        raise ValueError(
            f"{who} makes its positions itself, out of the ids, and does not count them from 0 as `generate` does, which therefore reads "
            "other positions than the model was trained with. Give a model whose positions begin at 0."
        )


def check_static(models: Mapping[str, PreTrainedModel]) -> None:
    """Raise if a member has layers whose states a static cache cannot hold."""
    for name, model in models.items():
        try:
            StaticCache(config=model.config, max_cache_len=1)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The member {name!r} ({type(model).__name__}) has layers whose states no static cache holds ({error}). Use a "
                "dynamic cache."
            ) from error


def check_coefficients(
    coefficients: torch.Tensor | None, tokens: torch.Tensor, names: tuple[str, ...], ruled: Collection[str] = ()
) -> None:
    """Raise if coefficients given for rows (and tokens) do not fit these, or are no numbers; see [`check_numbers`]."""
    if coefficients is None:
        return
    if not isinstance(coefficients, torch.Tensor):
        raise TypeError(
            f"`coefficients` must be a tensor with a row for each sequence and a column for each of {list(names)}, got "
            f"{type(coefficients).__name__}. Give `torch.tensor(...)` of it."
        )
    (batch, length), shape = tokens.shape, tuple(coefficients.shape)
    if shape not in {(batch, len(names)), (batch, length, len(names)), (1, length, len(names))}:
        raise ValueError(
            f"`coefficients` must have a row for each sequence and a column for each of {list(names)}, shape "
            f"({batch}, {len(names)}), got {shape}."
        )
    if not torch.compiler.is_compiling():
        check_numbers(coefficients, names, ruled)


def check_numbers(coefficients: torch.Tensor, names: Sequence[str], ruled: Collection[str]) -> None:
    """Raise if coefficients, `(..., members)`, are no numbers; NaN is what the recipe's rule says, of a member of `ruled`."""
    wrong = ~torch.isfinite(coefficients)
    if ruled:
        by_rule = torch.tensor([name in ruled for name in names], device=coefficients.device)
        wrong = wrong & ~(coefficients.isnan() & by_rule)
    if bool(wrong.any()):
        where = wrong.nonzero()[0].tolist()
        found, name = coefficients[tuple(where)].item(), names[where[-1]]
        rule = f" The recipe has no rule for {name!r} that NaN could stand for." if math.isnan(found) else ""
        raise ValueError(f"`coefficients` must be finite, got {found} for the member {name!r} in row {where[0]}.{rule}")


def check_rows(tokens: torch.Tensor, cache: Cache | None) -> None:
    """Raise if a cache holds states of another number of rows than are read."""
    caches: list[Cache] = [] if cache is None else list(cache.members.values()) if isinstance(cache, EFTCache) else [cache]
    # In plain steps: releases of torch before 2.13 cannot trace a value that is named within a generator.
    known = [count for count in map(rows_of, caches) if count is not None]
    rows = known[0] if known else len(tokens)
    if rows != len(tokens):
        raise ValueError(
            f"`cache` holds states of {rows} rows, but {len(tokens)} are read. Pass a cache of the same rows. (From a call "
            "with an assistant or a `seed`, rows that end before others are missing: go on from such a batch without its cache.)"
        )


def check_mask(attention_mask: Any, tokens: torch.Tensor, cache: Cache | None) -> None:
    """Raise if a mask of rows and columns does not cover what is cached and what is read."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return
    if torch.compiler.is_compiling():
        return
    cached = int(cache.get_seq_length()) if cache is not None else 0
    expected = (tokens.shape[0], cached + tokens.shape[1])
    if attention_mask.shape != expected:
        raise ValueError(
            f"`attention_mask` must cover the {cached} cached and {tokens.shape[1]} new tokens of {expected[0]} rows, shape "
            f"{expected}, got {tuple(attention_mask.shape)}."
        )
