"""What members read in a step of `generate`: tokens, masks, positions and coefficients, by member where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate

from ..members.cache import EFTCache, counts_tokens
from ..members.call import innermost
from ..members.devices import execution_device
from ..members.members import Members
from ..members.padding import readable, unfilled
from ..members.releases import CACHE, takes_cache
from ..members.sight import refuse_behind, remember, seen_before, sights_of
from ..members.trial import check_trial
from ..prompts import MemberPrompts, positions_of
from ..recipe.combination import Combination
from .varying import EFTPhasesMixin

_MASK_OF = "/"  # between a member's name and the kind of its layers


class EFTInputsMixin(EFTPhasesMixin):
    """The part of [`EFTForCausalLM`] that prepares what is read."""

    _members: Members
    combination: Combination

    @property
    def _called_members(self) -> Members:
        """The members, those with a prompt of their own in this call with states of their own."""
        call = innermost(self)
        return self._members if call is None else call.members

    @takes_cache
    def create_masks_for_generate(
        self, config: Any, inputs_embeds: torch.Tensor, attention_mask: Any, cache: EFTCache, **kwargs: Any
    ) -> dict[str, Any]:
        """A mask for every member (they differ in window, cache length and dtype), as one flat dictionary for `generate`."""
        flat = {}
        for name, own_cache in cache.members.items():
            if name in (self._request.sights or {}):
                continue  # its model has made its mask, which may depend on where pictures are
            model = self._members.models[name]
            make = getattr(model, "create_masks_for_generate", create_masks_for_generate)
            own = self._request.own.get(name, {})
            shape = (*own["input_ids"].shape, 0) if own else inputs_embeds.shape
            given, device = own.get("attention_mask", attention_mask), execution_device(model)
            check_trial(name, model, device, given, cached=True)  # masks that are made no longer say where padding is
            if not counts_tokens(own_cache):  # state-space models take the mask as it is
                flat[f"{name}{_MASK_OF}"] = given
                continue
            masks = make(
                config=model.config,
                inputs_embeds=inputs_embeds.new_empty(shape, dtype=model.dtype, device=device),
                attention_mask=given,
                **{CACHE: own_cache},
                **{**kwargs, **({"position_ids": own["position_ids"]} if own else {})},
            )
            for kind, mask in masks.items() if isinstance(masks, dict) else [("", masks)]:
                flat[f"{name}{_MASK_OF}{kind}"] = mask
        return flat

    @takes_cache
    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        fresh = input_ids.shape[1] if next_sequence_length is None else next_sequence_length
        written = self._written(input_ids, cache)
        input_ids = self._legible(input_ids, attention_mask, fresh)
        self._look(input_ids, fresh, attention_mask, cache)
        step = {"first": bool(is_first_iteration), "use_cache": kwargs.get("use_cache") is not False}
        self._request.own = own = self._own_inputs(input_ids, fresh, cache, step)
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **{CACHE: cache},
            **kwargs,
        )
        if (embeds := inputs.get("inputs_embeds")) is not None and input_ids.shape[1] > 0:
            given = cast(torch.Tensor, inputs_embeds).shape[1]
            if input_ids.shape[1] != given:
                raise ValueError(
                    f"`inputs_embeds` stand for {given} tokens, but `input_ids` are {input_ids.shape[1]}: the "
                    "other members read the ids. Pass as many ids as embeddings, or none."
                )
            inputs["member_input_ids"] = input_ids[:, -embeds.shape[1] :]
        if own:
            mask = inputs.get("attention_mask")
            prepared = set(split_masks(mask)) if isinstance(mask, Mapping) else set()  # of members whose masks are in there
            inputs["member_inputs"] = {
                name: {k: v for k, v in x.items() if k != "attention_mask" or name not in prepared} for name, x in own.items()
            }
        if self.combination.scheduled or self._phases:
            read = next(inputs[key] for key in ("input_ids", "inputs_embeds") if inputs.get(key) is not None)
            made = self._varying(written, attention_mask, read.shape[1], given=inputs.get("coefficients") is not None)
            inputs |= {name: value.to(read.device) for name, value in made.items()}
        return inputs

    def _legible(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, fresh: int) -> torch.Tensor:
        """The tokens, those that are read now as members have rows for: here the mask is one of tokens still."""
        members, call = self._called_members, innermost(self)
        own: tuple[str, ...] = ()
        if call is not None:
            own = call.request.prompts.names if call.request.prompts is not None else ()
            fewest = min(member.rows for member in members.distinct.values())
            input_ids = unfilled(input_ids, call.request.prompt_length, call.pad, fewest)
        rows = {name: member.rows for name, member in members.distinct.items() if name not in own}
        start = input_ids.shape[1] - fresh
        read = input_ids[:, start:]
        clean = readable(read, attention_mask, rows)
        return input_ids if clean is read else torch.cat([input_ids[:, :start], clean], dim=1)

    def _own_inputs(
        self, input_ids: torch.Tensor, fresh: int, cache: Cache | None, step: Mapping[str, bool]
    ) -> dict[str, dict[str, Any]]:
        """What members with a prompt of their own, or with pictures, read next: all of prompt and continuation that they have not read."""
        prompts, start, sights = self._request.prompts, self._request.prompt_length, self._request.sights or {}
        names = () if prompts is None else prompts.names
        if names and start is None:
            raise ValueError("This way of decoding does not say where the prompt ends: it cannot have `member_inputs`.")
        if names and input_ids.shape[1] < cast(int, start):
            raise ValueError("`prefill_chunk_size` cuts one prompt into pieces: it cannot be used with `member_inputs`.")
        own = {}
        for name in dict.fromkeys((*names, *sights)):
            member = self._called_members.distinct[name]
            ids, mask = input_ids, None
            if name in names:
                ids, mask = cast(MemberPrompts, prompts).followed_by(name, input_ids[:, start:])
            read = cache.read_by(name, ids.shape[1] - fresh) if isinstance(cache, EFTCache) else 0
            count = ids.shape[1] - read if name in names else fresh
            if name in sights:
                states = cache.members[name] if isinstance(cache, EFTCache) else None
                own[name] = sights[name].inputs(ids, read, count, states, **step)
                if name not in names:
                    del own[name]["input_ids"]  # those of all
            else:
                own[name] = {
                    "input_ids": readable(ids[:, read:], mask, {name: member.rows}),
                    "attention_mask": mask,
                    "position_ids": positions_of(cast(torch.Tensor, mask))[:, read:],
                }
        return own

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> Any:
        self._request.expand = expand_size
        return super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)

    def _look(self, input_ids: torch.Tensor, fresh: int, attention_mask: torch.Tensor | None, cache: Cache | None) -> None:
        """Have members see what the call shows them, once its prompts are known; or what they were shown before, if a cache holds that."""
        request, members = self._request, self._called_members
        if request.sights is not None:
            return
        request.sights = {}
        if request.shown:
            refuse_behind(cache)
            request.sights = sights_of(
                members, input_ids[:: request.expand], None if attention_mask is None else attention_mask[:: request.expand],
                request.pictures, {} if request.prompts is None else request.prompts.by_name, expand=request.expand,
            )  # fmt: skip
            remember(cache, request.sights)
        elif isinstance(cache, EFTCache) and cache.positions:
            own = {} if request.prompts is None else request.prompts.by_name
            total = int(cache.get_seq_length()) + fresh
            request.sights = seen_before(cache, members, own, attention_mask, total)


def split_masks(attention_mask: Any) -> Any:
    """Undo the flattening of `create_masks_for_generate`: masks by member."""
    if not isinstance(attention_mask, Mapping):
        return attention_mask
    by_member: dict[str, Any] = {}
    for key, mask in attention_mask.items():
        name, kind = key.split(_MASK_OF, 1)
        if kind:
            by_member.setdefault(name, {})[kind] = mask
        else:
            by_member[name] = mask
    return by_member
