"""A set of models run as one step: each distinct model once, in its own dtype, on its own device, at its own positions."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from .adapters import by_adapter, resolve
from .adapters.joint import Joint
from .adapters.stack import Stack
from .cache import EFTCache, counts_tokens
from .checks import check_finite, check_model
from .combination import BASE, REFERENCE, TUNED
from .recurrent import forget_rows, has_read, linear_layers, rows_of_padding
from .releases import cache_argument
from .roll_back import goes_on
from .vocabulary import Vocabulary, width

# What only the main member is asked for: outputs of the others that nobody would see.
_MAIN_ONLY = ("output_attentions", "output_hidden_states", "output_router_logits", "return_shared_kv_states")


@dataclass(frozen=True)
class Member:
    """A model and what its `forward` takes."""

    name: str
    model: PreTrainedModel
    accepts: frozenset[str]
    takes_any: bool

    @classmethod
    def of(cls, name: str, model: PreTrainedModel) -> Member:
        parameters = inspect.signature(model.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return cls(name, model, frozenset(parameters), takes_any)

    @property
    def cache_argument(self) -> str:
        return str(cache_argument(self.accepts))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def is_stateful(self) -> bool:
        """Whether it has recurrent states."""
        return bool(getattr(self.model, "_is_stateful", False))

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
        tokens = inputs_embeds if input_ids is None else input_ids
        length = 0 if tokens is None else tokens.shape[1]
        given = {
            "input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids,
        }  # fmt: skip

        def read(cache: Cache | None, inputs: dict[str, Any], logits_to_keep: int | torch.Tensor) -> Any:
            return self._read(**inputs, cache=cache, use_cache=use_cache, logits_to_keep=logits_to_keep, extra=extra)

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
                    "position_ids": _column(position_ids, i),
                },
                0,
            )
            for i in range(length)
        ]
        steps[-1].logits = keep(torch.cat([step.logits for step in steps], dim=1), logits_to_keep)
        return steps[-1]

    def _read(
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
        """Call the model."""
        tokens = inputs_embeds if input_ids is None else input_ids
        padding = rows_of_padding(attention_mask) if cache is not None and linear_layers(cache) else None
        if cache is not None and not counts_tokens(cache) and isinstance(attention_mask, torch.Tensor) and tokens is not None:
            # State-space models multiply the mask into the tokens they read, not into those they have read.
            attention_mask = attention_mask[:, -tokens.shape[1] :]
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids if "position_ids" in self.accepts else None,
            "logits_to_keep": logits_to_keep if "logits_to_keep" in self.accepts else None,
            self.cache_argument: cache,
            **{key: value for key, value in extra.items() if self.takes_any or key in self.accepts},
        }
        inputs = {key: _to(value, self.device) for key, value in inputs.items() if value is not None}
        outputs = self.model(**inputs, use_cache=use_cache, return_dict=True)
        if padding is not None:
            forget_rows(cast(Cache, cache), padding)
        if "logits_to_keep" not in self.accepts:
            outputs.logits = keep(outputs.logits, logits_to_keep)
        return outputs


def named_members(base: Any, tuned: Any, reference: Any) -> dict[str, Any]:
    """The members in their order: the base, the tuned one or ones, the reference; those that are `None` left out."""
    models: dict[str, Any] = {}
    tuned = by_adapter(tuned)
    if base is not None:
        models[BASE] = base
    if isinstance(tuned, Mapping):
        if clash := {BASE, REFERENCE} & tuned.keys():
            raise ValueError(f"`tuned` may not name a member {clash.pop()!r}: that name has a meaning of its own.")
        models.update(tuned)
    elif tuned is not None:
        models[TUNED] = tuned
    if reference is not None:
        models[REFERENCE] = reference
    return models


class Members:
    r"""
    Named causal language models which read the same tokens.

    Args:
        given (`Mapping[str, PreTrainedModel or PeftModel or str]`):
            The model of every member, or its adapter: a `PeftModel` or a folder. One model may serve as several members: it is run once a
            step. The first is the *main* member, whose device the logits are returned on.
        wanted (`Collection[str]`, *optional*):
            The members that the recipe names: a missing reference is the model under the adapters.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*): See [`Vocabulary`].

    Raises:
        `ValueError`: If a member is missing, not a decoder-only language model, or returns logits of another width.
    """

    def __init__(
        self, given: Mapping[str, Any], wanted: Collection[str] = (), tokenizers: Mapping[str, Any] | None = None
    ) -> None:
        if not given:
            raise ValueError("There are no members. Give at least one model.")
        resolved = resolve(given, wanted)
        models = resolved.models
        for name, model in models.items():
            check_model(name, model)
        first_name: dict[int, str] = {}
        for name, model in models.items():
            first_name.setdefault(id(model), name)
        self.models = dict(models)
        self.owner = {name: first_name[id(model)] for name, model in models.items()}
        self.distinct = {name: Member.of(name, models[name]) for name in first_name.values()}
        self.main = next(iter(self.distinct))
        self.adapters = resolved.adapted
        self.stacks = [Stack(names, Member.of(names[0], model)) for names, model in resolved.stacks]
        self._given = dict(given)
        self.vocabulary = Vocabulary({name: width(member.model) for name, member in self.distinct.items()}, tokenizers)

    @property
    def vocab_size(self) -> int:
        """How many logits the main member returns, and a combination with it."""
        return self.vocabulary.widths[self.main]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.models)

    def apart(self, names: Collection[str]) -> Members:
        """The same members, in which those of `names` have states of their own though they share another's model."""
        if set(names) <= self.distinct.keys():
            return self
        first: dict[tuple[int, str | None], str] = {}
        keys = {name: (id(model), name if name in names else None) for name, model in self.models.items()}
        for name, key in keys.items():
            first.setdefault(key, name)
        other = copy.copy(self)
        other.owner = {name: first[key] for name, key in keys.items()}
        other.distinct = {name: Member.of(name, self.models[name]) for name in first.values()}
        return other

    def only(self, names: Sequence[str]) -> Members:
        """Some of the members, with states of their own."""
        if tuple(names) == self.names:
            return self
        other = copy.copy(self)
        other.models = {name: self.models[name] for name in names}
        first: dict[int, str] = {}
        other.owner = {name: first.setdefault(id(model), name) for name, model in other.models.items()}
        other.distinct = {name: Member.of(name, self.models[name]) for name in first.values()}
        other.main = names[0]
        return other

    def find(self, model: Any) -> str | None:
        """The distinct member that an object is: its model, or what was given for it."""
        if model is None:
            return None
        names = [name for name in self.names if model is self.models[name] or model is self._given.get(name)]
        active = getattr(model, "active_adapter", None)  # which of its adapters a `PeftModel` of several stands for
        return self.owner[active if active in names else names[0]] if names else None

    @property
    def distinct_models(self) -> dict[str, PreTrainedModel]:
        return {name: member.model for name, member in self.distinct.items()}

    @property
    def adapted(self) -> list[str]:
        """Names of the members that are views of a model with or without an adapter."""
        return [name for name, model in self.models.items() if model is not self._given.get(name)]

    @property
    def stateful(self) -> list[str]:
        """Names of the members with recurrent states."""
        return [name for name, member in self.distinct.items() if member.is_stateful]

    def new_cache(self) -> EFTCache:
        """An empty dynamic cache for every member."""
        config = self.models[self.main].config.get_text_config(decoder=True)
        return EFTCache.attach(DynamicCache(config=config), self.distinct_models)

    def step(
        self,
        input_ids: torch.Tensor | None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        cache: EFTCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        only: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> dict[str, Any]:
        r"""
        Run every distinct member once.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, positions)`): The tokens that follow those in `cache`.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, positions, hidden)`, *optional*):
                What the main member reads instead of `input_ids`.
            attention_mask (`torch.Tensor` of shape `(batch, cached + positions)`, or masks by member, *optional*):
                0 where a token is padding.
            position_ids (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*):
                Handed to those members that take it; the others derive positions from the mask.
            cache ([`EFTCache`], *optional*): The states of the tokens before; extended in place.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0): As in transformers; 0 keeps all.
            only (`Collection[str]`, *optional*): The distinct members to run; all by default.
            own (`Mapping[str, Mapping[str, Any]]`, *optional*):
                By distinct member, `input_ids`, `attention_mask` and `position_ids` in place of the common ones.

        Returns:
            `dict[str, ModelOutput]`: Each distinct member's own output, by name.
        """
        asked, own = set(self.distinct if only is None else only), own or {}
        caches = cache.members if cache is not None else {}
        outputs: dict[str, Any] = {}
        for stack in self.stacks if not torch.compiler.is_compiling() else ():  # graphs are for static caches, which have none
            one_pass = inputs_embeds is None and not any(extra.values()) and stack.fits(caches, attention_mask, own)
            if not one_pass or not asked.issuperset(stack.names):
                if cache is not None:
                    cache.joints.pop(stack.names, None)  # members that go on alone need no common states
                continue
            outputs |= stack.forward(
                input_ids=cast(torch.Tensor, input_ids),
                attention_mask=attention_mask,
                position_ids=position_ids,
                caches=caches,
                joint=cache.joints.setdefault(stack.names, Joint()) if cache is not None else None,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            )
        per_member = isinstance(attention_mask, Mapping)
        # What accelerators are given to do, they do while the CPU works: its own members come last.
        for name, member in sorted(self.distinct.items(), key=lambda item: item[1].device.type == "cpu"):
            if name not in asked or name in outputs:
                continue
            is_main = name == self.main
            common = {
                "input_ids": None if is_main and inputs_embeds is not None else input_ids,
                "attention_mask": attention_mask.get(name) if per_member else attention_mask,
                "position_ids": position_ids,
            }
            outputs[name] = member.forward(
                **{**common, **own.get(name, {})},
                inputs_embeds=inputs_embeds if is_main else None,
                cache=caches.get(name),
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                extra=extra if is_main else {k: v for k, v in extra.items() if k not in _MAIN_ONLY},
            )
        if cache is not None:
            tokens = input_ids if input_ids is not None else inputs_embeds
            cache.count(tokens.shape[1] if tokens is not None else 0)
        return outputs

    def logits(self, outputs: Mapping[str, Any], attention_mask: Any = None) -> dict[str, torch.Tensor]:
        """
        The members' logits of the tokens that all have, by name, on the main member's device: members that share a model share the tensor.

        Raises:
            `FloatingPointError`: If a member's are NaN or infinite, naming member, row and position. (Not inside a compiled
                graph, which cannot raise on data.)
        """
        return self.by_name({name: output.logits for name, output in outputs.items()}, attention_mask)

    def by_name(self, logits: Mapping[str, torch.Tensor], attention_mask: Any = None) -> dict[str, torch.Tensor]:
        """The same, from the logits of distinct members."""
        device = logits[self.main if self.main in logits else next(iter(logits))].device
        distinct = {name: self.vocabulary.cut(values.to(device)) for name, values in logits.items()}
        if not torch.compiler.is_compiling():
            # One look for all members: on an accelerator each look waits for it.
            tops = torch.stack([values.detach().amax(-1).isfinite().all() for values in distinct.values()])
            if not bool(tops.all()):
                for name, values in distinct.items():
                    check_finite(values, name, attention_mask)
        return {name: distinct[self.owner[name]] for name in self.names if self.owner[name] in distinct}


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
