"""What `generate` asks of a model, for a model of several members: caches, ways of decoding, and how drafts are decoded."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import StaticCache
from transformers.generation import GenerationMode
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS

from ..members.cache import EFTCache
from ..members.call import Call, PerThread, entered, innermost
from ..members.checks import check_static
from ..members.members import Members
from ..members.modalities import refuse_inputs
from ..members.ragged import make_whole
from ..members.releases import CACHE, cache_of, renamed
from ..members.siblings import check_room
from ..members.trial import check_moving
from ..prompts import MemberPrompts, warn_of_templates
from ..prompts.pictures import KINDS, take_pictures
from ..recipe.combination import Combination
from .continuous import EFTContinuousMixin
from .grammars import keeps_grammars
from .inputs import EFTInputsMixin
from .processing import EFTProcessingMixin
from .replayed import replayed
from .skipping.call import EFTSkippingMixin, refuse_skipping
from .skipping.options import Skipping
from .speculative import Speculation
from .speculative.choice import drafters, ways
from .speculative.graphs import Graphs
from .speculative.line import Line, lines_of
from .speculative.recurrent import check_within
from .speculative.request import Request, refuse_beside_pictures, refuse_what_cannot_be_speculated
from .speculative.rows import Rows
from .speculative.schedule import Fixed, Report
from .speculative.scoring import Scoring
from .speculative.small import SmallCombination, check_small
from .speculative.static import can_record, reading_of
from .speculative.watchers import refuse_stateful, refuse_streamer
from .tokens_left import BeamsLeft, EFTLeftMixin


class EFTGenerationMixin(
    EFTProcessingMixin, EFTContinuousMixin, EFTInputsMixin, EFTLeftMixin, EFTSkippingMixin, GenerationMixin
):
    """The part of [`EFTForCausalLM`] that `generate` talks to."""

    _members: Members
    combination: Combination
    _reports: PerThread
    _warned_of_templates = False
    config: Any

    @property
    def speculation(self) -> Report | None:
        """What speculation did in the last `generate` call of this thread that speculated."""
        return self._reports.value

    @property
    def small_combination(self) -> SmallCombination:
        """What drafts for this model as `assistant_model`: the recipe with the reference in the place of the base."""
        return SmallCombination(self)

    @property
    def vocab_size(self) -> int:
        """How many logits `forward` returns for a position: as many as the main member."""
        return self._members.vocab_size

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        if generation_config.cache_implementation in ALL_STATIC_CACHE_IMPLEMENTATIONS:
            check_static(self._called_members.distinct_models)
        if generation_config.use_cache is False and model_kwargs.get(CACHE) is not None:
            raise ValueError(
                f"`{CACHE}` was given with `use_cache=False`: every step would read the whole text again behind what it holds. Leave "
                "one of them out."
            )
        if "offloaded" in (generation_config.cache_implementation or "") and not torch.accelerator.is_available():
            raise ValueError(
                f"`cache_implementation={generation_config.cache_implementation!r}` moves states between a GPU and the CPU, and there is "
                "no GPU here. Use another one, or none."
            )
        speculates = generation_mode == GenerationMode.ASSISTED_GENERATION or self._request.seed is not None
        if speculates:
            max_cache_length += 1  # a place in static caches for what is drafted beyond the end of a row
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)
        cache = model_kwargs.get(CACHE)
        if cache is None:
            return
        own = max(max_cache_length, getattr(self, "_previous_max_cache_length", 0))
        user_made = getattr(cache, "_is_user_defined", False)
        room = self._request.prompts.longest if self._request.prompts is not None else 0
        attached = EFTCache.attach(cache, self._called_members.distinct_models, room + (max_cache_length if user_made else own))
        prompts = self._request.prompts
        attached.check_padding({name: mask for name, (_, mask, _) in prompts.by_name.items()} if prompts is not None else {})
        if speculates and isinstance(cache, StaticCache):
            for name, each in attached.members.items():
                make_whole(each, room + own)
                check_room(name, each, max_cache_length)
        if generation_config.is_assistant:
            cache.activate_past_recording()

    def _validate_generation_mode(self, generation_mode: Any, generation_config: Any, mode_kwargs: dict[str, Any]) -> None:
        if generation_mode == GenerationMode.ASSISTED_GENERATION and generation_config.num_return_sequences > 1:
            generation_config = copy.copy(generation_config)
            generation_config.num_return_sequences = 1  # transformers' limit, not ours: rows are rows
        assistant = mode_kwargs.get("assistant_model")
        if isinstance(assistant, SmallCombination):
            check_small(assistant, self, mode_kwargs, generation_config)
        if isinstance(assistant, SmallCombination) or self._members.find(assistant) is not None:
            # A member speaks our tokens, though its table may be of another width, which transformers takes for another tokenizer.
            mode_kwargs = {key: value for key, value in mode_kwargs.items() if key != "assistant_model"}
        super()._validate_generation_mode(generation_mode, generation_config, mode_kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        taken = inspect.signature(type(self).forward).parameters
        refuse_inputs({name: value for name, value in model_kwargs.items() if name not in taken})
        # Zeros say that all is text, which is what processors of multimodal models give with it.
        super()._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name != KINDS})

    @torch.no_grad()
    def generate(
        self,
        *args: Any,
        coupling: str | None = None,
        seed: int | Sequence[int] | None = None,
        member_inputs: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        skipping: Skipping | bool | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        As in transformers, see [`~transformers.GenerationMixin.generate`], with five options more.

        With `assistant_model=model.tuned` (any member, `model.small_combination`, or any model with the same vocabulary) or
        `prompt_lookup_num_tokens`, decoding is speculative, in batches too (EFT paper, section 4). The block is `num_assistant_tokens` if
        that is given, by this call or by the assistant's generation configuration; otherwise it is chosen from the agreement and the costs
        that are measured on the way, and so is, of a tuned member and the small combination, the one that drafts.
        What happened stands in `model.speculation` afterwards, in the thread that called. Processors that may keep a state, and streamers
        of several rows, are refused with it (docs/speculative.md).

        Args:
            coefficients (`torch.FloatTensor` of shape `(batch, members)`, or by phase, *optional*): See [`EFTForCausalLM.forward`].
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
            skipping (`Skipping` or `bool`, *optional*):
                Leave members out of steps in which they cannot change the choice; `True` where that is proved. See [`Skipping`]; what
                happened stands in `model.skipping` afterwards.

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
        request, members = Request.read(coupling, seed, kwargs.get("assistant_model"), config, kwargs), self._members
        request.pictures, request.skipping = take_pictures(kwargs), Skipping.of(skipping)
        if member_inputs:
            request.prompts = MemberPrompts(member_inputs, members.names[1:])
            members = members.apart(request.prompts.names)
        if request.shown:
            if request.skipping is not None:
                raise refuse_skipping("that are shown pictures")
            refuse_beside_pictures(config, kwargs)
        with entered(Call(self, request, members)):
            return super().generate(*args, **renamed(kwargs))

    def _begin(self, input_ids: torch.Tensor, generation_config: Any) -> None:
        """A way of decoding says where the prompt ends and what fills rows that have ended."""
        if self._request.shown and generation_config.prefill_chunk_size is not None:
            raise ValueError(
                "`prefill_chunk_size` cuts a prompt into pieces, and its pictures are shown at once: leave one of them out."
            )
        if (call := innermost(self)) is not None:
            pad = generation_config._pad_token_tensor
            call.request.prompt_ids, call.pad = input_ids, None if pad is None else int(pad)

    @keeps_grammars
    def _beam_search(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        self._begin(input_ids, kwargs["generation_config"])
        self._skip(kwargs, is_search=True)
        self._request.beams_left = BeamsLeft() if self._may_leave_nothing(kwargs["logits_processor"]) else None
        return super()._beam_search(input_ids, **kwargs)

    @keeps_grammars
    def _sample(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        self._begin(input_ids, kwargs["generation_config"])
        if self._request.seed is None or not kwargs["generation_config"].do_sample:
            self._skip(kwargs, is_search=False)
            self._request.replays = True
            return super()._sample(input_ids, **self._with_something_left(input_ids, kwargs, is_final=True))
        return self._speculate(input_ids, None, **kwargs)

    @keeps_grammars
    def _assisted_decoding(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        self._begin(input_ids, kwargs["generation_config"])
        refuse_stateful(kwargs["logits_processor"])
        if self._request.skipping is not None:
            raise refuse_skipping("with drafts, whose steps run members in an order of their own")
        config, assistant = kwargs["generation_config"], kwargs.get("assistant_model")
        theirs = (
            isinstance(assistant, EFTGenerationMixin)
            or "assistant_tokenizer" in kwargs
            or config.assistant_early_exit is not None
        )
        if theirs and isinstance(kwargs.get(CACHE), StaticCache):
            raise ValueError(
                "With this assistant, transformers rolls the members' states back itself, which it does not on static caches: use a "
                "dynamic one. On a static cache, a member, a model with the same tokenizer or the prompt may draft."
            )
        if theirs or (assistant is None and config.prompt_lookup_num_tokens is None):
            if self._members.stateful:
                raise ValueError(
                    "With this assistant, transformers rolls the members' states back itself, and recurrent ones cannot be: "
                    f"{', '.join(map(repr, self._members.stateful))}. A member, a model with the same tokenizer or the prompt may draft."
                )
            if self._request.prompts is not None or self._request.shown:
                raise ValueError(
                    "With `member_inputs` or pictures, a member, a model with the same tokenizer or the prompt may draft."
                )
            if (cache := kwargs.get(CACHE)) is not None and (held := int(cache.get_seq_length())):
                raise ValueError(
                    f"With this assistant, transformers reads the whole prompt again behind the {held} tokens that `{CACHE}` holds. Leave "
                    "the cache out; or let a member, a model with the same tokenizer or the prompt draft."
                )
            return super()._assisted_decoding(input_ids, **kwargs)
        kwargs.pop("assistant_model", None)
        return self._speculate(input_ids, assistant, **kwargs)

    def _speculate(
        self,
        input_ids: torch.Tensor,
        assistant: PreTrainedModel | SmallCombination | None,
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
        if self._request.skipping is not None:
            raise refuse_skipping("with a `seed`, whose steps run members in an order of their own")
        refuse_what_cannot_be_speculated(generation_config, logits_processor, model_kwargs)
        if synced_gpus:
            raise ValueError(
                "With `synced_gpus` all processes must take as many steps, and how many a draft takes differs from one to the next. Decode "
                "without an assistant and without a `seed`."
            )
        asked = {"generation_config": generation_config, "logits_processor": logits_processor}
        logits_processor = self._with_something_left(input_ids, asked, is_final=False)["logits_processor"]
        refuse_streamer(streamer, input_ids.shape[0])
        for name, member in self._called_members.distinct.items() if len(input_ids) > 1 else ():
            check_moving(name, member.model, member.device)
        room = generation_config.max_length - input_ids.shape[1]
        # A row may draft beyond its end, while others are behind.
        rows = Rows(input_ids, room=room + max(room, self._request.most))
        positions, mask = model_kwargs["position_ids"], model_kwargs.get("attention_mask")
        outputs = self._prefill(
            input_ids, generation_config, model_kwargs, is_first_iteration=not generation_config.is_assistant
        )
        cache = cache_of(outputs)
        for name, member in self._called_members.distinct.items():
            check_within(member, cache.members[name])
        cache.activate_past_recording()
        request, members, coefficients = self._request, self._called_members, model_kwargs.get("coefficients")
        padded = mask is not None and not bool(mask.all())  # without padding, members need no masks made
        following = positions[:, -1:].expand(input_ids.shape[0], 1) + 1
        common = Line(mask if padded else None, int(cache.get_seq_length()), following, room)
        lines = lines_of(common, members, request.prompts, request.sights or {}, input_ids, room)
        reading = reading_of(members, cache, lines, lambda: self._graphs(model_kwargs, generation_config))
        asked_to_draft = drafters(
            assistant, generation_config, reading=reading, combination=self.combination, chooses=request.chooses,
            by_row=coefficients is not None or request.by_phase is not None, line=copy.copy(common), rows=rows,
            pictures=request.pictures, expand=request.expand,
        )  # fmt: skip
        for drafter in asked_to_draft:
            drafter.prefill(input_ids, mask, positions)
        plain = assistant is None and generation_config.prompt_lookup_num_tokens is None
        settings = request.settings(generation_config, rows.count)
        speculation = Speculation(
            asked_to_draft,
            Fixed(0, heuristic=False) if plain else request.schedule(ways(asked_to_draft, members), reading.keeps_shapes),
            Scoring(members, self.combination, settings, rows, coefficients, logits_processor, self._standing(rows, mask)),
            reading,
            criteria=stopping_criteria,
            streamer=streamer,
            keep_scores=generation_config.return_dict_in_generate and generation_config.output_scores,
            keep_logits=generation_config.return_dict_in_generate and generation_config.output_logits,
        )
        speculation.run(outputs.logits[:, -1].to(torch.float32))
        if streamer is not None:
            streamer.end()
        self._reports.value = speculation.accounts.report
        return speculation.packed(generation_config)

    def get_compiled_call(self, compile_config: Any) -> Any:
        compiled, call = super().get_compiled_call(compile_config), innermost(self)
        if call is None or not call.request.replays:
            return compiled
        config = compile_config or self._default_compile_config()
        return replayed(self, call.members, compiled, config.to_dict())

    def _graphs(self, model_kwargs: dict[str, Any], generation_config: Any) -> Graphs | None:
        """What compiles the steps on static caches, where transformers compiles plain decoding."""
        members = self._called_members.distinct.values()
        wanted = self._valid_auto_compile_criteria(model_kwargs, generation_config)
        if not (wanted and all(can_record(member.model, self.device) for member in members)):
            return None
        config = generation_config.compile_config or self._default_compile_config()
        return Graphs(config.to_dict(), self.device)

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        assistant = kwargs.get("assistant_model")
        if assistant is not None and not isinstance(assistant, EFTGenerationMixin):
            # The assistant is handed our inputs, and only a combination knows coefficients.
            kwargs["model_kwargs"] = {k: v for k, v in kwargs["model_kwargs"].items() if k != "coefficients"}
        return super()._get_candidate_generator(*args, **kwargs)
