"""`EFTForCausalLM`: the members as one model that `generate` can run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, StaticCache
from transformers.generation import GenerationMode
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults

from .cache import EFTCache
from .combination import BASE, REFERENCE, Combination, combine
from .configuration_eft import EFTConfig
from .drafting import Drafter, LookupDrafter, MemberDrafter, NoDrafter, OutsideDrafter
from .embeds import ids_from_embeds
from .members import Members, named_members
from .schedule import Automatic, Fixed, Report
from .speculative import Request, Rows, Speculation, refuse_what_cannot_be_speculated
from .vocabulary import check_tokenizers

_LOSS_ONLY = ("num_items_in_batch", "shift_labels")


class EFTForCausalLM(PreTrainedModel, GenerationMixin):
    r"""
    Several language models that predict as one: `softmax(sum_k c_k log p_k)`, by default emulated fine-tuning, `base + tuned -
    reference` (EFT paper, equation 4). Negative weights on a safety-tuned delta undo its safety training.

    Contract:

    - **Decoding**: every strategy of `generate` acts on the combination: greedy, sampling, beams, assisted decoding with any
      assistant, prompt lookup, early exit, guidance, static, quantized and offloaded caches, compiled or not. Continuous batching
      is refused; beams and assisted decoding need members whose states can be moved and rolled back (assisted decoding refuses
      recurrent ones by name).
    - **Batching and padding**: any batch, padded on the left (or on the right in `forward`): pass `attention_mask`.
    - **Forwards per token**: one of each distinct model, however many members it serves as.
    - **Memory**: the members' weights (nothing is copied), a cache for each distinct model, and one float32 buffer of the shape of
      the logits.
    - **Members**: stay usable alone; their configurations and generation configurations are left as they are. Moving or casting
      this model moves and casts them.
    - **Threads**: one call at a time, as for any model.

    Make it from live models with [`EFTForCausalLM.from_models`].

    Args:
        config ([`EFTConfig`]): The members' configurations and the recipe.
        members (`Mapping[str, torch.nn.Module]`, *optional*):
            Live models to use instead of building them from `config`.

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    >>> list(model.members)
    ['base', 'tuned', 'reference']
    ```
    """

    config_class = EFTConfig
    base_model_prefix = "base"  # early exit looks the main member up under this name
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]

    def __init__(self, config: EFTConfig, members: Mapping[str, PreTrainedModel] | None = None) -> None:
        super().__init__(config)
        self._adopted = members is not None
        if members is None:
            built = {
                name: AutoModelForCausalLM.from_config(member_config, attn_implementation=member_config._attn_implementation)
                for name, member_config in config.member_configs.items()
            }
            members = {name: built[config.shared_members.get(name, name)] for name in config.member_names}
        self._members = Members(members)
        self.combination = Combination.from_dict(config.combination)
        for name, model in self._members.distinct_models.items():
            if not name.isidentifier() or hasattr(self, name):
                raise ValueError(f"A member cannot be called {name!r}: choose an identifier that is no attribute of the model.")
            self.add_module(name, model)
        self.base_model_prefix = self._members.main
        models = self._members.distinct_models.values()
        self._request = Request()
        self.speculation: Report | None = None  # what speculation did in the last `generate` call that speculated
        self._is_stateful = bool(self._members.stateful)
        for flag in ("_can_compile_fullgraph", "_supports_flash_attn", "_supports_sdpa", "_supports_flex_attn"):
            setattr(self, flag, all(getattr(model, flag, False) for model in models))
        self.vocab_size = self._members.vocab_size
        self.post_init()

    @classmethod
    def from_models(
        cls,
        base: PreTrainedModel | None,
        tuned: PreTrainedModel | Mapping[str, PreTrainedModel] | None = None,
        reference: PreTrainedModel | None = None,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        combination: Combination | None = None,
        tokenizers: Mapping[str, Any] | None = None,
    ) -> EFTForCausalLM:
        r"""
        Combine live models. Nothing is copied; the models stay usable alone, and one model may serve as several members.

        Args:
            base (`PreTrainedModel`, *optional*):
                The model whose knowledge is wanted, usually large. `None` for recipes without one (DeRa, MOD).
            tuned (`PreTrainedModel` or `Mapping[str, PreTrainedModel]`, *optional*):
                The model whose behaviour is wanted, usually small; or several by name. May be left out for contrastive decoding.
            reference (`PreTrainedModel`, *optional*):
                What `tuned` was before it was fine-tuned. May be left out if the combination has no use for it.
            alpha (`float`, *optional*): Strength of the behaviour delta; 1 if nothing else is given.
            beta (`float`, *optional*): Amplification of the up-scaling delta, instead of `alpha`.
            combination ([`Combination`], *optional*): Any other recipe, instead of `alpha` and `beta`.
            tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*):
                The tokenizer of each member, by name, to have their contents compared.

        Returns:
            [`EFTForCausalLM`]: In evaluation mode if all members are. Its generation configuration is a copy of the tuned
            member's if there is just one, whose end-of-turn tokens and defaults it needs; otherwise of the main member's.

        Raises:
            `ValueError`: If a member that the recipe names is missing, members do not fit together, or a recipe is given twice.
        """
        combination = Combination.of(alpha, beta, combination, tuned)
        models = named_members(base, tuned, reference)
        combination.check_names(tuple(models))
        if tokenizers is not None:
            check_tokenizers(tokenizers)
        members = Members(models)
        config = EFTConfig.from_members(
            members.names,
            {name: model.config for name, model in members.distinct_models.items()},
            {name: owner for name, owner in members.owner.items() if name != owner},
            combination,
        )
        model = cls(config, members=models)
        tuned_names = [name for name in members.names if name not in (BASE, REFERENCE)]
        source = models[tuned_names[0]] if len(tuned_names) == 1 else models[members.main]
        model.generation_config = copy.deepcopy(source.generation_config)
        model.training = any(m.training for m in models.values())  # not `train()`, which would change the members' modes
        return model

    # Members ------------------------------------------------------------------------------------------------------------

    @property
    def members(self) -> dict[str, PreTrainedModel]:
        """Every member's model, by name. Members that share a model share the object."""
        return dict(self._members.models)

    @property
    def combination(self) -> Combination:
        """The recipe. May be replaced between calls."""
        return self._combination

    @combination.setter
    def combination(self, combination: Combination) -> None:
        combination.check_names(self._members.names)
        self._combination = combination
        self.config.combination = combination.to_dict()

    def __getattr__(self, name: str) -> Any:
        # A member that shares another's model is no submodule of its own: the weights are there once.
        members = self.__dict__.get("_members")
        if members is not None and name in members.owner and name not in members.distinct:
            return members.models[name]
        return super().__getattr__(name)

    @property
    def _main_model(self) -> Any:
        return self._members.models[self._members.main]

    def init_weights(self) -> None:
        if not self._adopted:  # live models have their weights
            super().init_weights()

    def get_input_embeddings(self) -> PreTrainedModel:
        return self._main_model.get_input_embeddings()

    def set_input_embeddings(self, value: PreTrainedModel) -> None:
        self._main_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> PreTrainedModel:
        return self._main_model.get_output_embeddings()

    def set_output_embeddings(self, value: PreTrainedModel) -> None:
        self._main_model.set_output_embeddings(value)

    def get_decoder(self) -> PreTrainedModel:
        return self._main_model.get_decoder()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> PreTrainedModel:
        """Resize every member's."""
        for name, model in self._members.distinct_models.items():
            model.resize_token_embeddings(new_num_tokens, *args, **kwargs)
            self.config.member_configs[name].get_text_config(decoder=True).vocab_size = model.config.vocab_size
        self._members = Members(self._members.models)
        self.vocab_size = self._members.vocab_size
        return self.get_input_embeddings()

    # Forward ------------------------------------------------------------------------------------------------------------

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        coefficients: torch.Tensor | None = None,
        member_input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, positions)`, *optional*): The tokens to read.
            attention_mask (`torch.Tensor` of shape `(batch, cached + positions)`, *optional*): 0 where a token is padding.
            position_ids (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*): Positions of the tokens.
            past_key_values ([`EFTCache`] or an empty `Cache`, *optional*): States of the tokens before; extended in place.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, positions, hidden)`, *optional*):
                What the main member reads instead of `input_ids`. The others read `member_input_ids`; without them, the ids are
                looked up in the main member's embedding table, where that is exact.
            labels (`torch.LongTensor` of shape `(batch, positions)`, *optional*): Tokens to compute the loss for; -100 is ignored.
            use_cache (`bool`, *optional*): Whether to return the states.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0): Which positions' logits to return; 0 for all.
            coefficients (`torch.FloatTensor` of shape `(batch, members)`, *optional*):
                Coefficients for each row instead of the recipe's, columns in the order of `members`.
            member_input_ids (`torch.LongTensor` of shape `(batch, positions)`, *optional*):
                The tokens that `inputs_embeds` stand for.

        Returns:
            [`~transformers.modeling_outputs.CausalLMOutputWithPast`]: The combined logits at every requested position, float32,
            not normalised; the loss if there are labels; the main member's hidden states and attentions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds` (with `member_input_ids` for the other members).")
        tokens = cast(torch.Tensor, input_ids)
        if inputs_embeds is not None:
            tokens = ids_from_embeds(self._main_model, inputs_embeds) if member_input_ids is None else member_input_ids
        _check_mask(attention_mask, tokens, past_key_values)
        self._check_coefficients(coefficients, tokens.shape[0])
        cache = self._cache_for(past_key_values, use_cache)
        loss_kwargs = {key: kwargs.pop(key) for key in _LOSS_ONLY if key in kwargs}

        outputs = self._members.step(
            tokens,
            inputs_embeds=inputs_embeds,
            attention_mask=_split_masks(attention_mask),
            position_ids=position_ids,
            cache=cache,
            use_cache=bool(use_cache),
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        logits = combine(self._members.logits(outputs, attention_mask), self.combination, coefficients)

        loss = None
        if labels is not None or loss_kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **loss_kwargs)
        main = outputs[self._members.main]
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=cache,
            hidden_states=main.get("hidden_states"),
            attentions=main.get("attentions"),
        )

    def member_logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Every member's own logits for `input_ids`, by name: `(batch, positions, vocab)` each, what [`combine`] takes."""
        outputs = self._members.step(input_ids, attention_mask=attention_mask)
        return self._members.logits(outputs, attention_mask)

    def _cache_for(self, cache: Cache | None, use_cache: bool | None) -> EFTCache | None:
        if cache is None:
            return self._members.new_cache() if use_cache else None
        return EFTCache.attach(cache, self._members.distinct_models)

    def _check_coefficients(self, coefficients: torch.Tensor | None, batch: int) -> None:
        names = self._members.names
        if coefficients is None:
            return
        if coefficients.shape != (batch, len(names)):
            raise ValueError(
                f"`coefficients` must have a row for each sequence and a column for each of {list(names)}, shape "
                f"({batch}, {len(names)}), got {tuple(coefficients.shape)}."
            )
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(coefficients).all()):
            row, column = (~torch.isfinite(coefficients)).nonzero()[0].tolist()
            raise ValueError(
                f"`coefficients` must be finite, got {coefficients[row, column].item()} for the member {names[column]!r} in row "
                f"{row}."
            )

    # Generation ---------------------------------------------------------------------------------------------------------

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)
        cache = model_kwargs.get("past_key_values")
        if cache is None:
            return
        if generation_mode == GenerationMode.ASSISTED_GENERATION and isinstance(cache, StaticCache):
            raise ValueError("Assisted decoding rolls caches back, which static ones cannot. Use a dynamic cache.")
        own = max(max_cache_length, getattr(self, "_previous_max_cache_length", 0))
        user_made = getattr(cache, "_is_user_defined", False)
        EFTCache.attach(cache, self._members.distinct_models, max_cache_length if user_made else own)
        if generation_config.is_assistant:
            cache.activate_past_recording()

    def _validate_generation_mode(self, generation_mode: Any, generation_config: Any, mode_kwargs: dict[str, Any]) -> None:
        if generation_mode == GenerationMode.ASSISTED_GENERATION and self._members.stateful:
            raise ValueError(
                "Assisted decoding rolls the members' states back, which recurrent ones cannot: "
                f"{', '.join(map(repr, self._members.stateful))}. Decode without an assistant."
            )
        if generation_mode == GenerationMode.ASSISTED_GENERATION and generation_config.num_return_sequences > 1:
            generation_config = copy.copy(generation_config)
            generation_config.num_return_sequences = 1  # transformers' limit, not ours: rows are rows
        super()._validate_generation_mode(generation_mode, generation_config, mode_kwargs)

    def create_masks_for_generate(
        self, config: Any, inputs_embeds: torch.Tensor, attention_mask: Any, past_key_values: EFTCache, **kwargs: Any
    ) -> dict[str, Any]:
        """A mask for every member (they differ in window, cache length and dtype), as one flat dictionary for `generate`."""
        flat = {}
        for name, cache in past_key_values.members.items():
            model = self._members.models[name]
            make = getattr(model, "create_masks_for_generate", create_masks_for_generate)
            masks = make(
                config=model.config,
                inputs_embeds=inputs_embeds.new_empty(inputs_embeds.shape, dtype=model.dtype, device=model.device),
                attention_mask=attention_mask,
                past_key_values=cache,
                **kwargs,
            )
            for kind, mask in masks.items() if isinstance(masks, dict) else [("", masks)]:
                flat[f"{name}{_MASK_OF}{kind}"] = mask
        return flat

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
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
        return inputs

    @torch.no_grad()
    def generate(self, *args: Any, coupling: str | None = None, seed: int | Sequence[int] | None = None, **kwargs: Any) -> Any:
        r"""
        As in transformers, see [`~transformers.GenerationMixin.generate`], with three options more.

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

        Returns:
            As in transformers.
        """
        config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)
        before = self._request
        self._request = Request.read(coupling, seed, kwargs.get("assistant_model"), config, kwargs)
        try:
            return super().generate(*args, **kwargs)
        finally:
            self._request = before

    def _sample(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if self._request.seed is None or not kwargs["generation_config"].do_sample:
            return super()._sample(input_ids, **kwargs)
        return self._speculate(input_ids, None, Fixed(0, heuristic=False), **kwargs)

    def _assisted_decoding(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        config, assistant = kwargs["generation_config"], kwargs.get("assistant_model")
        theirs = (
            isinstance(assistant, EFTForCausalLM) or "assistant_tokenizer" in kwargs or config.assistant_early_exit is not None
        )
        if theirs or (assistant is None and config.prompt_lookup_num_tokens is None):
            return super()._assisted_decoding(input_ids, **kwargs)
        kwargs.pop("assistant_model", None)
        return self._speculate(input_ids, assistant, self._request.schedule(input_ids.shape[0]), **kwargs)

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
        rows = Rows(input_ids, generation_config.max_length - input_ids.shape[1] + 2 * 64)
        positions, mask = model_kwargs["position_ids"], model_kwargs.get("attention_mask")
        outputs = self._prefill(
            input_ids, generation_config, model_kwargs, is_first_iteration=not generation_config.is_assistant
        )
        cache = outputs.past_key_values
        cache.activate_past_recording()
        drafter = self._drafter(assistant, rows, cache, generation_config)
        if drafter.member is None:
            drafter.prefill(input_ids, mask, positions)
        speculation = Speculation(
            self._members,
            self.combination,
            drafter,
            schedule,
            self._request.settings(generation_config, rows.count),
            cache=cache,
            rows=rows,
            mask=mask,
            positions=positions[:, -1:].expand(rows.count, 1) + 1,
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

    def _drafter(self, assistant: PreTrainedModel | None, rows: Rows, cache: EFTCache, generation_config: Any) -> Drafter:
        for name, model in self._members.distinct_models.items():
            if model is assistant:
                return MemberDrafter(name, self._members, cache)
        if assistant is not None:
            return OutsideDrafter(assistant, self.vocab_size)
        if generation_config.prompt_lookup_num_tokens is None:
            return NoDrafter(rows)
        return LookupDrafter(rows, self.vocab_size, generation_config.max_matching_ngram_size or 2)

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        assistant = kwargs.get("assistant_model")
        if assistant is not None and not isinstance(assistant, EFTForCausalLM):
            # The assistant is handed our inputs, and only a combination knows coefficients.
            kwargs["model_kwargs"] = {k: v for k, v in kwargs["model_kwargs"].items() if k != "coefficients"}
        return super()._get_candidate_generator(*args, **kwargs)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the paged cache of continuous batching has the geometry of one model, and the members would overwrite it."""
        raise NotImplementedError(
            "Continuous batching (`generate_batch`, `cache_implementation='paged'`) keeps one paged cache with the main member's "
            f"geometry; the members {list(self._members.distinct)} need one each. Use `generate`, which batches too."
        )

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, see [`EFTForCausalLM.generate_batch`]."""
        return self.generate_batch()


_MASK_OF = "/"  # between a member's name and the kind of its layers


def _split_masks(attention_mask: Any) -> Any:
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


def _check_mask(attention_mask: Any, tokens: torch.Tensor, cache: Cache | None) -> None:
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


AutoModelForCausalLM.register(EFTConfig, EFTForCausalLM, exist_ok=True)
