"""What `generate` asks of a model, for a model of several members: caches, masks, inputs, and how drafts are decoded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, StaticCache
from transformers.generation import GenerationMode
from transformers.masking_utils import create_masks_for_generate

from .cache import EFTCache, counts_tokens
from .combination import Combination
from .continuous import EFTContinuousMixin
from .members import Members
from .prompts import MemberPrompts, positions_of, warn_of_templates
from .releases import CACHE, cache_of, renamed, takes_cache
from .roll_back import check_within
from .speculative import Speculation
from .speculative.drafting import Drafter, LookupDrafter, MemberDrafter, NoDrafter, OutsideDrafter
from .speculative.line import Line
from .speculative.request import Request, refuse_what_cannot_be_speculated
from .speculative.rows import Rows
from .speculative.schedule import Automatic, Fixed, Report
from .vocabulary import Vocabulary

_MASK_OF = "/"  # between a member's name and the kind of its layers


class EFTGenerationMixin(EFTContinuousMixin, GenerationMixin):
    """The part of [`EFTForCausalLM`] that `generate` talks to."""

    _members: Members
    combination: Combination
    speculation: Report | None  # what speculation did in the last `generate` call that speculated
    _request: Request
    _warned_of_templates = False
    _held_tokenizers: Mapping[str, Any] | None = None  # where they are not those that were compared
    config: Any

    @property
    def vocab_size(self) -> int:
        """How many logits `forward` returns for a position: as many as the main member."""
        return self._members.vocab_size

    @property
    def tokenizers(self) -> dict[str, Any]:
        """
        The members' tokenizers, by name, as far as they were given. May be replaced, which compares their contents anew: tokens that one of
        them does not know are never generated. (Those that a folder only holds are not compared.)
        """
        return dict(self._members.vocabulary.tokenizers if self._held_tokenizers is None else self._held_tokenizers)

    @tokenizers.setter
    def tokenizers(self, tokenizers: Mapping[str, Any]) -> None:
        self._members.vocabulary = Vocabulary(self._members.vocabulary.widths, tokenizers)
        self._held_tokenizers = None
        self.config.tokenizer_members = list(tokenizers)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)
        cache = model_kwargs.get(CACHE)
        if cache is None:
            return
        if generation_mode == GenerationMode.ASSISTED_GENERATION and isinstance(cache, StaticCache):
            raise ValueError("Assisted decoding rolls caches back, which static ones cannot. Use a dynamic cache.")
        own = max(max_cache_length, getattr(self, "_previous_max_cache_length", 0))
        user_made = getattr(cache, "_is_user_defined", False)
        room = self._request.prompts.longest if self._request.prompts is not None else 0
        EFTCache.attach(cache, self._members.distinct_models, room + (max_cache_length if user_made else own))
        if generation_config.is_assistant:
            cache.activate_past_recording()

    def _validate_generation_mode(self, generation_mode: Any, generation_config: Any, mode_kwargs: dict[str, Any]) -> None:
        if generation_mode == GenerationMode.ASSISTED_GENERATION and generation_config.num_return_sequences > 1:
            generation_config = copy.copy(generation_config)
            generation_config.num_return_sequences = 1  # transformers' limit, not ours: rows are rows
        if self._members.find(mode_kwargs.get("assistant_model")) is not None:
            # A member speaks our tokens, though its table may be of another width, which transformers takes for another tokenizer.
            mode_kwargs = {key: value for key, value in mode_kwargs.items() if key != "assistant_model"}
        super()._validate_generation_mode(generation_mode, generation_config, mode_kwargs)

    @takes_cache
    def create_masks_for_generate(
        self, config: Any, inputs_embeds: torch.Tensor, attention_mask: Any, cache: EFTCache, **kwargs: Any
    ) -> dict[str, Any]:
        """A mask for every member (they differ in window, cache length and dtype), as one flat dictionary for `generate`."""
        flat = {}
        for name, own_cache in cache.members.items():
            model = self._members.models[name]
            make = getattr(model, "create_masks_for_generate", create_masks_for_generate)
            own = self._request.own.get(name, {})
            shape = (*own["input_ids"].shape, 0) if own else inputs_embeds.shape
            if not counts_tokens(own_cache):  # state-space models take the mask as it is
                flat[f"{name}{_MASK_OF}"] = own.get("attention_mask", attention_mask)
                continue
            masks = make(
                config=model.config,
                inputs_embeds=inputs_embeds.new_empty(shape, dtype=model.dtype, device=model.device),
                attention_mask=own.get("attention_mask", attention_mask),
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
        self._request.own = own = self._own_inputs(input_ids, fresh, cache)
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
            prepared = isinstance(inputs.get("attention_mask"), Mapping)  # masks for all members, these included
            left_out = {"attention_mask"} if prepared else set()
            inputs["member_inputs"] = {name: {k: v for k, v in x.items() if k not in left_out} for name, x in own.items()}
        if self.combination.scheduled and inputs.get("coefficients") is None:
            read = next(inputs[key] for key in ("input_ids", "inputs_embeds") if inputs.get(key) is not None)
            inputs["coefficients"] = self._scheduled(input_ids.shape[1], read.shape[1]).to(read.device)
        return inputs

    def _own_inputs(self, input_ids: torch.Tensor, fresh: int, cache: Cache | None) -> dict[str, dict[str, torch.Tensor]]:
        """What members with a prompt of their own read next: all of prompt and continuation that their caches do not hold."""
        prompts, start = self._request.prompts, self._request.prompt_length
        if prompts is None:
            return {}
        if start is None:
            raise ValueError("This way of decoding does not say where the prompt ends: it cannot have `member_inputs`.")
        if input_ids.shape[1] < start:
            raise ValueError("`prefill_chunk_size` cuts one prompt into pieces: it cannot be used with `member_inputs`.")
        own = {}
        for name in prompts.names:
            ids, mask = prompts.followed_by(name, input_ids[:, start:])
            read = cache.read_by(name, ids.shape[1] - fresh) if isinstance(cache, EFTCache) else 0
            own[name] = {
                "input_ids": ids[:, read:], "attention_mask": mask, "position_ids": positions_of(mask)[:, read:],
            }  # fmt: skip
        return own

    def _scheduled(self, length: int, read: int) -> torch.Tensor:
        """The coefficients at the last `read` of `length` tokens, each for the token after it: `(1, read, members)`."""
        if self._request.prompt_length is None:
            raise ValueError(
                "This way of decoding does not say where the prompt ends, which a schedule of coefficients counts from. Use numbers."
            )
        generated = length - self._request.prompt_length
        return self.combination.at((max(0, generated - back) for back in reversed(range(read))), self._members.names)[None]

    @torch.no_grad()
    def generate(
        self,
        *args: Any,
        coupling: str | None = None,
        seed: int | Sequence[int] | None = None,
        member_inputs: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        As in transformers, see [`~transformers.GenerationMixin.generate`], with four options more.

        With `assistant_model=model.tuned` (any member, or any model with the same vocabulary) or `prompt_lookup_num_tokens`, decoding is
        speculative, in batches too (EFT paper, section 4). The block is `num_assistant_tokens` if that is given, by this call or by
        the assistant's generation configuration; otherwise it is chosen from the acceptance and the costs that are measured on the way.
        What happened stands in `model.speculation` afterwards.

        Args:
            coefficients (`torch.FloatTensor` of shape `(batch, members)`, *optional*): See [`EFTForCausalLM.forward`].
            coupling (`str`, *optional*, defaults to `"reject"`):
                How drafts are accepted when sampling. `"reject"`: exact distribution, most tokens a round. `"match"`: draft and target
                share their noise, so that the tokens are those of plain decoding with the same `seed`. Greedy decoding is its limit.
            seed (`int` or `Sequence[int]`, *optional*):
                For `coupling="match"`, with or without an assistant: a row's tokens depend only on its seed (with one number, on its
                place in the batch as well), not on batch, padding or speculation.
            member_inputs (`Mapping[str, Mapping[str, torch.Tensor]]`, *optional*):
                By member, `input_ids` and `attention_mask` of shape `(batch, length)`: a prompt of its own, row by row, of any length and
                padded on the left, in place of the call's, which is the first member's. What is generated follows them all. `{}` says that
                all members read the call's.

        Warns:
            `UserWarning`, once for a model: If the members' chat templates differ, a prompt ends as one of them does, and nothing was
                said of `member_inputs`.

        Returns:
            As in transformers.
        """
        config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)
        if member_inputs is None and not self._warned_of_templates:
            ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
            self._warned_of_templates = warn_of_templates(self.tokenizers, ids)
        before = self._request, self._members
        self._request = Request.read(coupling, seed, kwargs.get("assistant_model"), config, kwargs)
        if member_inputs:
            self._request.prompts = MemberPrompts(member_inputs, self._members.names[1:])
            self._members = self._members.apart(self._request.prompts.names)
        try:
            return super().generate(*args, **renamed(kwargs))
        finally:
            self._request, self._members = before

    def _beam_search(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        self._request.prompt_length = input_ids.shape[1]
        return super()._beam_search(input_ids, **kwargs)

    def _sample(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        self._request.prompt_length = input_ids.shape[1]
        if self._request.seed is None or not kwargs["generation_config"].do_sample:
            return super()._sample(input_ids, **kwargs)
        return self._speculate(input_ids, None, Fixed(0, heuristic=False), **kwargs)

    def _assisted_decoding(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        self._request.prompt_length = input_ids.shape[1]
        config, assistant = kwargs["generation_config"], kwargs.get("assistant_model")
        theirs = (
            isinstance(assistant, EFTGenerationMixin)
            or "assistant_tokenizer" in kwargs
            or config.assistant_early_exit is not None
        )
        if theirs or (assistant is None and config.prompt_lookup_num_tokens is None):
            if self._members.stateful:
                raise ValueError(
                    "With this assistant, transformers rolls the members' states back itself, and recurrent ones cannot be: "
                    f"{', '.join(map(repr, self._members.stateful))}. A member, a model with the same tokenizer or the prompt may draft."
                )
            if self._request.prompts is not None:
                raise ValueError("With `member_inputs`, a member, a model with the same tokenizer or the prompt may draft.")
            return super()._assisted_decoding(input_ids, **kwargs)
        kwargs.pop("assistant_model", None)
        return self._speculate(input_ids, assistant, self._request.schedule(), **kwargs)

    def _speculate(
        self,
        input_ids: torch.Tensor,
        assistant: PreTrainedModel | None,
        schedule: Fixed | Automatic,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        synced_gpus: bool = False,
        inputs_tensor: Any = None,
        tokenizer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Read the prompt, decode speculatively, and pack what came out as `generate` does."""
        refuse_what_cannot_be_speculated(generation_config, logits_processor, model_kwargs)
        room = generation_config.max_length - input_ids.shape[1]
        rows = Rows(input_ids, room=2 * room)  # a row may draft beyond its end, while others are behind
        positions, mask = model_kwargs["position_ids"], model_kwargs.get("attention_mask")
        outputs = self._prefill(
            input_ids, generation_config, model_kwargs, is_first_iteration=not generation_config.is_assistant
        )
        cache = cache_of(outputs)
        for name, member in self._members.distinct.items():
            check_within(member, cache.members[name])
        cache.activate_past_recording()
        drafter = self._drafter(assistant, rows, cache, generation_config)
        drafter.prefill(input_ids, mask, positions)
        speculation = Speculation(
            self._members,
            self.combination,
            drafter,
            schedule,
            self._request.settings(generation_config, rows.count),
            cache=cache,
            rows=rows,
            lines=self._lines(input_ids, mask, positions, cache, room),
            coefficients=model_kwargs.get("coefficients"),
            processors=logits_processor,
            criteria=stopping_criteria,
            streamer=streamer,
            keep_scores=generation_config.return_dict_in_generate and generation_config.output_scores,
            keep_logits=generation_config.return_dict_in_generate and generation_config.output_logits,
        )
        speculation.run(outputs.logits[:, -1].to(torch.float32))
        if streamer is not None:
            streamer.end()
        self.speculation = speculation.report
        return speculation.packed(generation_config)

    def _lines(
        self, input_ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: EFTCache, room: int
    ) -> dict[str, Line]:
        """Where every member stands after the prompt, which `room` tokens at most will follow."""
        padded = mask is not None and not bool(mask.all())  # without padding, members need no masks made
        common = Line(
            mask if padded else None, int(cache.get_seq_length()), positions[:, -1:].expand(input_ids.shape[0], 1) + 1, room
        )
        lines = dict.fromkeys(self._members.distinct, common)
        prompts = self._request.prompts
        for name in prompts.names if prompts is not None else ():
            _, own = cast(MemberPrompts, prompts).followed_by(name, input_ids[:, :0])
            lines[name] = Line(own, own.shape[1], positions_of(own)[:, -1:] + 1, room)
        return lines

    def _drafter(self, assistant: PreTrainedModel | None, rows: Rows, cache: EFTCache, generation_config: Any) -> Drafter:
        if (name := self._members.find(assistant)) is not None:
            return MemberDrafter(name, self._members, cache)
        if assistant is not None:
            return OutsideDrafter(assistant, self.vocab_size)
        if generation_config.prompt_lookup_num_tokens is None:
            return NoDrafter(rows)
        return LookupDrafter(rows, self.vocab_size, generation_config.max_matching_ngram_size or 2)

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        assistant = kwargs.get("assistant_model")
        if assistant is not None and not isinstance(assistant, EFTGenerationMixin):
            # The assistant is handed our inputs, and only a combination knows coefficients.
            kwargs["model_kwargs"] = {k: v for k, v in kwargs["model_kwargs"].items() if k != "coefficients"}
        return super()._get_candidate_generator(*args, **kwargs)


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
