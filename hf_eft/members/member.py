"""One member: a model, what its `forward` takes, and a step of it, in its own dtype, on its own device, at its own positions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from . import states
from .beside import Work
from .cache import counts_tokens
from .devices import execution_device
from .recurrent import forget_rows, has_read, linear_layers, rows_of_padding
from .releases import cache_argument
from .roll_back import goes_on
from .vocabulary import table_rows


@dataclass(frozen=True)
class Member:
    """A model and what its `forward` takes."""

    name: str
    model: PreTrainedModel
    accepts: frozenset[str]
    takes_any: bool
    rows: int  # ids that it can look up

    @classmethod
    def of(cls, name: str, model: PreTrainedModel) -> Member:
        parameters = inspect.signature(model.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        kind = View if getattr(model, "is_view", False) else cls
        return kind(name, model, frozenset(parameters), takes_any, table_rows(model))

    @property
    def cache_argument(self) -> str:
        return str(cache_argument(self.accepts))

    @property
    def device(self) -> torch.device:
        return execution_device(self.model)

    @property
    def is_stateful(self) -> bool:
        """Whether it has recurrent states."""
        return bool(getattr(self.model, "_is_stateful", False))

    def reads(self, **inputs: Any) -> Work:
        """A step of this model alone, not done yet: see [`Member.forward`]."""
        return Work(self.model, lambda: {self.name: self.forward(**inputs)})

    def forward(
        self,
        *,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        use_cache: bool,
        logits_to_keep: int | torch.Tensor,
        extra: Mapping[str, Any],
    ) -> Any:
        """One step of this model alone, its inputs moved to its device."""
        given = {
            "input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids,
        }  # fmt: skip

        def read(cache: Cache | None, inputs: Mapping[str, Any], logits_to_keep: int | torch.Tensor) -> Any:
            return self._read(inputs, cache, use_cache, logits_to_keep, extra)

        length = _length(given)
        if not self.is_stateful or length < 2 or cache is None or not has_read(cache):
            return read(cache, given, logits_to_keep)
        if goes_on(self.model, lambda other: read(other, given, 1), cache):
            return read(cache, given, logits_to_keep)
        steps = [
            read(
                cache,
                {
                    "input_ids": _column(input_ids, i),
                    "inputs_embeds": _column(inputs_embeds, i),
                    "attention_mask": _up_to(attention_mask, length - 1 - i),
                    "position_ids": None if position_ids is None else position_ids[..., i : i + 1],  # on one axis or several
                },
                0,
            )
            for i in range(length)
        ]
        steps[-1].logits = keep(torch.cat([step.logits for step in steps], dim=1), logits_to_keep)
        return steps[-1]

    def _read(
        self,
        given: Mapping[str, Any],
        cache: Cache | None,
        use_cache: bool,
        logits_to_keep: int | torch.Tensor,
        extra: Mapping[str, Any],
    ) -> Any:
        """Call the model."""
        attention_mask, position_ids = given["attention_mask"], given["position_ids"]
        padding = rows_of_padding(attention_mask) if cache is not None and linear_layers(cache) else None
        if cache is not None and not counts_tokens(cache) and isinstance(attention_mask, torch.Tensor):
            # State-space models multiply the mask into the tokens they read, not into those they have read.
            attention_mask = attention_mask[:, -_length(given) :]
        inputs: dict[str, Any] = {
            **given,
            "attention_mask": attention_mask,
            "position_ids": position_ids if "position_ids" in self.accepts else None,
            "logits_to_keep": logits_to_keep if "logits_to_keep" in self.accepts else None,
            self.cache_argument: cache,
            **{key: value for key, value in extra.items() if self.takes_any or key in self.accepts},
        }
        device = self.device
        inputs = {key: _to(value, device) for key, value in inputs.items() if value is not None}
        outputs = states.read(self.name, self.model, inputs, cache, use_cache)
        if padding is not None:
            forget_rows(cast(Cache, cache), padding)
        if "logits_to_keep" not in self.accepts:
            outputs.logits = keep(outputs.logits, logits_to_keep)
        return outputs


class View(Member):
    """A member that reads by another model (`model.is_view`): that one is a [`Member`] there, so that how it reads is looked at there."""

    def forward(self, **inputs: Any) -> Any:
        given = {key: inputs[key] for key in ("input_ids", "inputs_embeds", "attention_mask", "use_cache", "logits_to_keep")}
        try:
            return self.model(**given, **{self.cache_argument: inputs["cache"]})
        except ValueError as error:
            raise ValueError(f"The member {self.name!r} cannot read on. {error}") from error


def _length(given: Mapping[str, Any]) -> Any:
    """How many tokens are read."""
    tokens = given["inputs_embeds"] if given["input_ids"] is None else given["input_ids"]
    return 0 if tokens is None else tokens.shape[1]


def _column(values: torch.Tensor | None, i: int) -> torch.Tensor | None:
    return None if values is None else values[:, i : i + 1]


def _up_to(attention_mask: Any, left_out: int) -> Any:
    """A mask without its last columns."""
    if not isinstance(attention_mask, torch.Tensor):
        return attention_mask
    return attention_mask[:, : attention_mask.shape[1] - left_out]


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) and value.device != device else value


def keep(values: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions, `(batch, positions, ...)`, that `logits_to_keep` asks for; 0 for all."""
    if isinstance(logits_to_keep, int):
        return values[:, -logits_to_keep:] if logits_to_keep else values
    return values[:, logits_to_keep]
