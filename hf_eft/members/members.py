"""A set of models run as one step: each distinct model once, in its own dtype, on its own device, at its own positions."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from transformers import DynamicCache, PreTrainedModel

from .adapters import resolve
from .adapters.stack import Stack
from .beside import Started, Work
from .cache import EFTCache
from .checks import Finite, check_model
from .halfway import together
from .member import Member
from .padding import readable_by
from .unread import Unread
from .vocabulary import Vocabulary, width

# What only the main member is asked for: outputs of the others that nobody would see.
_MAIN_ONLY = ("output_attentions", "output_hidden_states", "output_router_logits", "return_shared_kv_states")

# Of the passes that members on adapters save by sharing one; measured, 0.47 to 1.01 of them (`examples/benchmarks/lora.py`).
_SHARED_PASS = 0.75


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
        self.given = dict(given)
        self._kept_apart: dict[frozenset[str], Members] = {}
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
        users = Counter(self.owner.values())
        if all(users[self.owner[name]] == 1 for name in names):
            return self
        return self._kept_apart.get(frozenset(names)) or self._parted(names)

    def _parted(self, names: Collection[str]) -> Members:
        first: dict[tuple[int, str | None], str] = {}
        keys = {name: (id(model), name if name in names else None) for name, model in self.models.items()}
        for name, key in keys.items():
            first.setdefault(key, name)
        other = copy.copy(self)
        other.owner = {name: first[key] for name, key in keys.items()}
        other.distinct = {name: Member.of(name, self.models[name]) for name in first.values()}
        self._kept_apart[frozenset(names)] = other
        return other

    def only(self, names: Sequence[str]) -> Members:
        """Some of the members, with states of their own."""
        if tuple(names) == self.names:
            return self
        return self._of({name: self.models[name] for name in names})

    def instead(self, name: str, model: PreTrainedModel) -> Members:
        """The same members, one of which is another model, with states of their own."""
        other = self._of({**self.models, name: model})
        other.given = {**self.given, name: model}
        other.stacks = [stack for stack in other.stacks if name not in stack.names]
        other.vocabulary = Vocabulary({each: width(m.model) for each, m in other.distinct.items()}, self.vocabulary.tokenizers)
        return other

    def _of(self, models: dict[str, PreTrainedModel]) -> Members:
        other = copy.copy(self)
        other._kept_apart = {}
        other.models = models
        first: dict[int, str] = {}
        other.owner = {name: first.setdefault(id(model), name) for name, model in models.items()}
        other.distinct = {name: Member.of(name, models[name]) for name in first.values()}
        other.main = next(iter(models))
        other.stacks = [stack for stack in self.stacks if set(stack.names) <= set(models)]
        return other

    def find(self, model: Any) -> str | None:
        """The distinct member that an object is: its model, or what was given for it."""
        if model is None:
            return None
        names = [name for name in self.names if model is self.models[name] or model is self.given.get(name)]
        active = getattr(model, "active_adapter", None)  # which of its adapters a `PeftModel` of several stands for
        return self.owner[active if active in names else names[0]] if names else None

    @property
    def distinct_models(self) -> dict[str, PreTrainedModel]:
        return {name: member.model for name, member in self.distinct.items()}

    @property
    def adapted(self) -> list[str]:
        """Names of the members that are views of a model with or without an adapter."""
        return [name for name, model in self.models.items() if model is not self.given.get(name)]

    @property
    def stateful(self) -> list[str]:
        """Names of the members with recurrent states."""
        return [name for name, member in self.distinct.items() if member.is_stateful]

    def passes(self, names: Collection[str]) -> float:
        """How many passes of one member a step of these distinct members takes; where several share one pass, it costs three quarters."""
        served = [stack.names for stack in self.stacks if set(stack.names) <= set(names)]
        shared = sum(map(len, served))
        return len(names) - shared + _SHARED_PASS * shared

    def new_cache(self) -> EFTCache:
        """An empty dynamic cache for every member."""
        return EFTCache.attach(DynamicCache(config=self.models[self.main].config), self.distinct_models)

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
                By distinct member, `input_ids`, `attention_mask` and `position_ids` in place of the common ones, and whatever else its
                model takes, such as pictures.

        Returns:
            `dict[str, ModelOutput]`: Each distinct member's own output, by name.
        """
        common = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        self._settle(self.distinct if only is None else only, cache, common, own or {})
        works, count = self._asked(
            input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, cache=cache,
            use_cache=use_cache, logits_to_keep=logits_to_keep, only=only, own=own or {}, extra=extra,
        )  # fmt: skip
        if torch.compiler.is_compiling():
            outputs: dict[str, Any] = {}
            for work in works:
                outputs |= work.run()
            count()
            return outputs
        with together(cache):
            return Started(works, count, is_free=False).outputs()

    def start(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: Any,
        position_ids: torch.Tensor,
        cache: EFTCache,
        only: Collection[str],
        own: Mapping[str, Mapping[str, Any]],
    ) -> Started:
        """As [`Members.step`] with a cache, which comes back while devices that can work by themselves, or beside others, are at work."""
        works, count = self._asked(
            input_ids, inputs_embeds=None, attention_mask=attention_mask, position_ids=position_ids, cache=cache, use_cache=True,
            logits_to_keep=0, only=only, own=own, extra={},
        )  # fmt: skip
        with together(cache):
            return Started(works, count, is_free=True)

    def _asked(
        self,
        input_ids: torch.Tensor | None,
        *,
        inputs_embeds: torch.Tensor | None,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        cache: EFTCache | None,
        use_cache: bool,
        logits_to_keep: int | torch.Tensor,
        only: Collection[str] | None,
        own: Mapping[str, Mapping[str, Any]],
        extra: Mapping[str, Any],
    ) -> tuple[list[Work], Callable[[], None]]:
        """What each model that is asked will do, and what is to be done when all have."""
        asked = set(self.distinct if only is None else only)
        common = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given, missed, kept = own, self._missed(asked, cache), dict.fromkeys(asked, logits_to_keep)
        for name, unread in missed.items():
            now = {**common, **given.get(name, {})}
            kept[name], own = unread.kept(logits_to_keep, now["input_ids"].shape[1]), {**own, name: unread.before(now)}
        readers = {name: m.rows for name, m in self.distinct.items() if name in asked}
        input_ids, own = readable_by(readers, input_ids, attention_mask, own, None if inputs_embeds is None else self.main)
        caches = cache.members if cache is not None else {}
        works: list[Work] = []
        stacked: set[str] = set()
        for stack in self.stacks:
            if asked.isdisjoint(stack.names):
                continue
            joint = cache.joint(stack) if cache is not None else None
            one_pass = inputs_embeds is None and not any(extra.values()) and stack.fits(caches, joint, attention_mask, given)
            alike = len({missed[name].count if name in missed else 0 for name in stack.names}) == 1
            if not one_pass or not alike or not asked.issuperset(stack.names):
                if cache is not None:
                    cache.part(stack)
                continue
            stacked.update(stack.names)
            theirs = own.get(stack.names[0], {**common, "input_ids": input_ids})  # with what all of them have missed
            read = functools.partial(
                stack.forward,
                **theirs,
                caches=caches,
                joint=joint,
                use_cache=use_cache,
                logits_to_keep=kept[stack.names[0]],
            )
            works.append(Work(stack.member.model, read))
        per_member = isinstance(attention_mask, Mapping)
        # What accelerators are given to do, they do while the CPU works: its own members come last.
        for name, member in sorted(self.distinct.items(), key=lambda item: item[1].device.type == "cpu"):
            if name not in asked or name in stacked:
                continue
            is_main = name == self.main
            common = {
                "input_ids": None if is_main and inputs_embeds is not None else input_ids,
                "attention_mask": attention_mask.get(name) if per_member else attention_mask,
                "position_ids": position_ids,
            }
            mine = own.get(name, {})
            works.append(
                member.reads(
                    **{key: mine.get(key, value) for key, value in common.items()},
                    inputs_embeds=inputs_embeds if is_main else None,
                    cache=caches.get(name),
                    use_cache=use_cache,
                    logits_to_keep=kept[name],
                    extra={
                        **(extra if is_main else {k: v for k, v in extra.items() if k not in _MAIN_ONLY}),
                        **{key: value for key, value in mine.items() if key not in common},
                    },
                )
            )
        tokens = input_ids if input_ids is not None else inputs_embeds

        def count() -> None:
            if cache is not None:
                cache.apart = cache.apart or any("input_ids" in inputs for inputs in given.values())
                for name in missed:
                    del cache.unread[name]
                if self.main in asked:  # the others may be asked after it, or be left out
                    cache.count(tokens.shape[1] if tokens is not None else 0)

        return works, count

    def _settle(
        self, asked: Collection[str], cache: EFTCache | None, common: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Have members read apart what they have missed, where only that, or only what follows it, was given positions."""
        for name, unread in self._missed(asked, cache).items():
            if (alone := unread.alone({**common, **own.get(name, {})}, self.distinct[name].rows)) is not None:
                states = cast(EFTCache, cache)
                with together(cache):
                    self.distinct[name].forward(**alone, cache=states.members[name])
                del states.unread[name]

    def _missed(self, asked: Collection[str], cache: EFTCache | None) -> dict[str, Unread]:
        """What those that are asked have missed, which they read before what they are given now."""
        if cache is None or torch.compiler.is_compiling():  # graphs are for static caches, of which no member misses anything
            return {}
        return {name: cache.unread[name] for name in self.distinct if name in asked and name in cache.unread}

    def logits(self, outputs: Mapping[str, Any], attention_mask: Any = None) -> dict[str, torch.Tensor]:
        """
        The members' logits of the tokens that all have, by name, on the main member's device: members that share a model share the tensor.

        Raises:
            `FloatingPointError`: If a member's are NaN or infinite, naming member, row and position. (Not inside a compiled
                graph, which cannot raise on data.)
        """
        return self.by_name({name: output.logits for name, output in outputs.items()}, attention_mask)

    def by_name(
        self, logits: Mapping[str, torch.Tensor], attention_mask: Any = None, later: list[Finite] | None = None
    ) -> dict[str, torch.Tensor]:
        """The same, from the logits of distinct members. Whether they are finite is looked at now, or by whoever `later` belongs to."""
        device = logits[self.main if self.main in logits else next(iter(logits))].device
        distinct = {name: self.vocabulary.cut(values.to(device)) for name, values in logits.items()}
        if not torch.compiler.is_compiling():
            check = Finite(distinct, attention_mask)
            if later is not None:
                later.append(check)
            elif not bool(check.holds):
                check.refuse()
        return {name: distinct[self.owner[name]] for name in self.names if self.owner[name] in distinct}
