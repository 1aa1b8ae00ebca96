"""`EFTForCausalLM`: the members as one model that `generate` can run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults

from .configuration_eft import EFTConfig
from .decoding.generation import EFTGenerationMixin
from .decoding.inputs import split_masks
from .folders.saving import EFTSavingMixin
from .members.adapters import by_adapter
from .members.auto import auto_class
from .members.cache import EFTCache
from .members.call import PerThread, innermost
from .members.checks import check_coefficients, check_mask, check_rows
from .members.embeds import ids_from_embeds
from .members.learnt import recommended
from .members.member import keep
from .members.members import Members
from .members.membership import EFTMembersMixin, describe
from .members.modalities import refuse_inputs
from .members.named import named_members
from .members.releases import CACHE, takes_cache
from .members.sight import in_forward
from .members.vocabulary import end_tokens
from .planning import HERE, Plan, plan_of
from .prompts import positions_in_common
from .prompts.pictures import take_pictures
from .recipe.combination import BASE, REFERENCE, Coefficient, Combination
from .recipe.combine import certainly, combine
from .units.members import chosen, in_vocabulary, spoken

_LOSS_ONLY = ("num_items_in_batch", "shift_labels")


class EFTForCausalLM(EFTMembersMixin, EFTGenerationMixin, EFTSavingMixin, PreTrainedModel):
    r"""
    Several language models that predict as one: `softmax(sum_k c_k log p_k)`, by default emulated fine-tuning, `base + tuned -
    reference` (EFT paper, equation 4). Negative weights on a safety-tuned delta undo its safety training.

    Contract:

    - **Decoding**: every strategy of `generate` acts on the combination: greedy, sampling, beams, assisted decoding with any
      assistant, prompt lookup, early exit, guidance, static, quantized and offloaded caches, compiled or not; and
      continuous batching, which refuses what it would not do exactly. Beams and assisted decoding need members whose states can be
      moved and rolled back: those that keep recurrent states outside of their cache are refused by name.
    - **Batching and padding**: any batch, padded on the left (or on the right in `forward`): pass `attention_mask`.
    - **Forwards per token**: one of each distinct model, however many members it serves as; fewer with `generate(skipping=...)`.
    - **Memory**: the members' weights (nothing is copied), a cache for each distinct model, and one float32 buffer of the shape of
      the logits.
    - **Members**: stay usable alone; their configurations and generation configurations are left as they are. Moving or casting
      this model moves and casts them.
    - **Threads**: any number may call at a time: what a call asks for is that call's alone. The recipe and the members cannot be replaced
      while one runs.
    - **Pictures and films**: seen by every member, which encodes them itself: given to `generate` and `forward` as to a plain model where
      members take the same, or by `member_inputs` where each has its own processor. Sounds are refused by name.

    Make it from live models with [`EFTForCausalLM.from_models`].

    Args:
        config ([`EFTConfig`]): The members' configurations and the recipe.
        members (`Mapping[str, torch.nn.Module]`, *optional*):
            Live models to use instead of building them from `config`.
        combination ([`Combination`], *optional*): A recipe instead of that of `config`.

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
    _skip_keys_device_placement: ClassVar[list[str]] = [CACHE]

    def __init__(
        self,
        config: EFTConfig,
        members: Mapping[str, PreTrainedModel] | Members | None = None,
        combination: Combination | None = None,
    ) -> None:
        super().__init__(config)
        self._adopted = members is not None
        if members is None:
            if config.adapters or not config.member_names:
                raise ValueError(
                    "Adapters, and members that are referred to, are not made from a configuration: load the folder."
                )
            built = {
                name: auto_class(member_config).from_config(
                    member_config, attn_implementation=member_config._attn_implementation
                )
                for name, member_config in config.member_configs.items()
            }
            members = {name: built[config.shared_members.get(name, name)] for name in config.member_names}
        members = members if isinstance(members, Members) else Members(members)
        for name in members.distinct:
            if not name.isidentifier() or hasattr(self, name):
                raise ValueError(f"A member cannot be called {name!r}: choose an identifier that is no attribute of the model.")
        self._reports, self._skips = PerThread(), PerThread()
        self._hold(members)
        self.combination = Combination.from_dict(config.combination) if combination is None else combination
        self.post_init()

    @classmethod
    def from_models(
        cls,
        base: PreTrainedModel | None,
        tuned: PreTrainedModel | Mapping[str, PreTrainedModel] | None = None,
        reference: PreTrainedModel | None = None,
        *,
        alpha: Coefficient | None = None,
        beta: Coefficient | None = None,
        combination: Combination | None = None,
        tokenizers: Mapping[str, Any] | None = None,
        vocabulary: str | None = None,
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
            alpha (`float`, *optional*):
                Strength of the behaviour delta. If nothing else is given, 1; or the strength that `tuned` says it is to be used at, if it
                learnt through a base (docs/tuning.md).
            beta (`float`, *optional*): Amplification of the up-scaling delta, instead of `alpha`.
            combination ([`Combination`], *optional*): Any other recipe, instead of `alpha` and `beta`.
            tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`, *optional*):
                The tokenizer of each member, by name, to have their contents compared. Tokens that one of them does not know are never
                generated. For a member that sees, its processor, which has one: kept in `model.processors`, and saved.
            vocabulary (`str`, *optional*):
                For members whose `tokenizers` differ (docs/tokenizers.md). `"tokens"`: by tokens of the base that all members' tokens are
                made of; the combination reads and writes ids of the base. `"bytes"`: byte by byte, at a cost; it reads and writes ids of
                the byte tokenizer. `"auto"`: as they are if all have one tokenizer, by tokens where that is exact, else by bytes; which
                it was, [`EFTForCausalLM.vocabulary`] says.

        Returns:
            [`EFTForCausalLM`]: In evaluation mode if all members are. Its generation configuration is a copy of the tuned
            member's if there is just one, whose end-of-turn tokens and defaults it needs; otherwise of the main member's.

        Raises:
            `ValueError`: If a member that the recipe names is missing, members do not fit together, or a recipe is given twice.
        """
        alpha = recommended(alpha, beta, combination, tuned)
        combination = Combination.of(alpha, beta, combination, by_adapter(tuned))
        vocabulary, units = chosen(vocabulary, tokenizers)
        named = named_members(base, tuned, reference)
        given, beneath = in_vocabulary(vocabulary, named, combination.coefficients, tokenizers, units)
        members = Members(given, combination.coefficients, tokenizers if vocabulary is None else None)
        combination.check_names(members.names)
        models = members.models
        model = cls(describe(members, combination), members, combination)
        if tokenizers:
            model._held_tokenizers = spoken(vocabulary, tokenizers)
        model._beneath, model.config.vocabulary = beneath, vocabulary
        tuned_names = [name for name in members.names if name not in (BASE, REFERENCE)]
        source = models[tuned_names[0]] if len(tuned_names) == 1 else models[members.main]
        model.generation_config = copy.deepcopy(source.generation_config)
        members.vocabulary.check_end(
            end_tokens(source.generation_config), tuned_names[0] if len(tuned_names) == 1 else members.main
        )
        model.training = any(m.training for m in models.values())  # not `train()`, which would change the members' modes
        return model

    def init_weights(self) -> None:
        if not self._adopted:  # live models have their weights
            super().init_weights()

    @staticmethod
    def plan(members: Any, machine: Any = HERE, **options: Any) -> Plan:
        """
        What a combination will take, before anything is loaded: weights, states and time by member, the best block, and what does not fit.
        See [`~hf_eft.planning.plan_of`].
        """
        return plan_of(members, machine, **options)

    # Forward ------------------------------------------------------------------------------------------------------------

    @takes_cache
    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        coefficients: torch.Tensor | None = None,
        certain_tokens: torch.Tensor | None = None,
        member_input_ids: torch.Tensor | None = None,
        member_inputs: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, positions)`, *optional*): The tokens to read.
            attention_mask (`torch.Tensor` of shape `(batch, cached + positions)`, *optional*): 0 where a token is padding.
            position_ids (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*): Positions of the tokens.
            cache ([`EFTCache`] or an empty `Cache`, *optional*):
                States of the tokens before, extended in place; `past_key_values` before transformers 5.24.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, positions, hidden)`, *optional*):
                What the main member reads instead of `input_ids`. The others read `member_input_ids`; without them, the ids are
                looked up in the main member's embedding table, where that is exact.
            labels (`torch.LongTensor` of shape `(batch, positions)`, *optional*): Tokens to compute the loss for; -100 is ignored.
            use_cache (`bool`, *optional*): Whether to return the states.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0): Which positions' logits to return; 0 for all.
            coefficients (`torch.FloatTensor` of shape `(batch, members)` or `(1 or batch, positions, members)`, *optional*):
                Coefficients for each row, or for each row and token read, instead of the recipe's; columns in the order of `members`.
                NaN is what the recipe's rule says of a member that has one.
                Without them, a recipe with a schedule counts from the first token of the sequence, and one with phases reads these
                from the tokens, which it can without a cache that holds some already.
            certain_tokens (`torch.LongTensor` of shape `(1 or batch, positions)`, *optional*):
                The token that must follow each token read, -1 where none must: how `generate` ends a phase whose budget is used up.
            member_input_ids (`torch.LongTensor` of shape `(batch, positions)`, *optional*):
                The tokens that `inputs_embeds` stand for.
            member_inputs (`Mapping[str, Mapping[str, torch.Tensor]]`, *optional*):
                By member, `input_ids`, `attention_mask`, `position_ids` and pictures that it reads in place of the common ones: another
                prompt, and the same continuation. Logits are returned from the right, as many as the shortest has positions.
            **kwargs (*optional*):
                Pictures and films, as the members' processor makes them (`pixel_values`, `image_grid_thw`, ...), which every member
                without `member_inputs` sees.

        Returns:
            [`~transformers.modeling_outputs.CausalLMOutputWithPast`]: The combined logits at every requested position, float32,
            not normalised; the loss if there are labels; the main member's hidden states and attentions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds` (with `member_input_ids` for the other members).")
        tokens = cast(torch.Tensor, input_ids)
        if inputs_embeds is not None:
            tokens = ids_from_embeds(self._main_model, inputs_embeds) if member_input_ids is None else member_input_ids
        members, given = self._members, (member_inputs or {}).items()
        # A model sees for all members that it serves as, apart from those with a prompt of their own.
        members = members.apart([name for name, inputs in given if "input_ids" in inputs or name not in members.distinct])
        if member_inputs:
            logits_to_keep = positions_in_common(logits_to_keep, tokens, member_inputs)
        check_rows(tokens, cache)
        check_mask(attention_mask, tokens, cache)
        cache = _cache_for(members, cache, use_cache)
        if (
            cache is not None and not torch.compiler.is_compiling() and innermost(self) is None
        ):  # `generate` has checked its prompts
            cache.check_padding({name: inputs.get("attention_mask") for name, inputs in given})
        pictures = {} if torch.compiler.is_compiling() else take_pictures(kwargs)
        if pictures and (inputs_embeds is not None or position_ids is not None):
            raise ValueError(
                "With pictures, members look for their places among `input_ids`, and count their positions from them."
            )
        own = in_forward(members, tokens, attention_mask, pictures, member_inputs or {}, cache, bool(use_cache))
        if coefficients is None and (self.combination.scheduled or self.combination.phased):
            start = int(cache.get_seq_length()) if cache is not None else 0
            made = self._varying_from(start, tokens, attention_mask)
            coefficients, certain_tokens = made["coefficients"], made.get("certain_tokens")
        check_coefficients(coefficients, tokens, members.names, self.combination.ruled)
        loss_kwargs = {key: kwargs.pop(key) for key in _LOSS_ONLY if key in kwargs}
        refuse_inputs(kwargs)

        step = {
            "input_ids": tokens,
            "own": own,
            "inputs_embeds": inputs_embeds,
            "attention_mask": split_masks(attention_mask),
            "position_ids": position_ids,
            "cache": cache,
            "use_cache": bool(use_cache),
            "logits_to_keep": logits_to_keep,
            **kwargs,
        }
        if coefficients is not None and coefficients.dim() == 3:
            coefficients = keep(coefficients, logits_to_keep)
        certain_tokens = None if certain_tokens is None else keep(certain_tokens, logits_to_keep)
        skipper = None if torch.compiler.is_compiling() else self._skipper()
        if skipper is None:
            outputs = members.step(**step)
            logits = combine(members.logits(outputs, attention_mask), self.combination, coefficients)
        else:
            outputs, logits = skipper.step(members, coefficients, certain_tokens, step)
        logits = members.vocabulary.widen(logits, members.vocab_size)
        logits = certainly(logits, certain_tokens)

        loss = None
        if labels is not None or loss_kwargs.get("shift_labels") is not None:
            labels = labels[:, -logits.shape[1] :] if labels is not None and member_inputs else labels
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **loss_kwargs)
        main = outputs[members.main]
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: cache},
            hidden_states=main.get("hidden_states"),
            attentions=main.get("attentions"),
        )

    def member_logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """
        Every member's own logits for `input_ids`, by name: `(batch, positions, vocab)` each, of the tokens that all members have; what
        [`combine`] takes.
        """
        outputs = self._members.step(input_ids, attention_mask=attention_mask)
        return self._members.logits(outputs, attention_mask)


def _cache_for(members: Members, cache: Cache | None, use_cache: bool | None) -> EFTCache | None:
    if cache is None:
        return members.new_cache() if use_cache else None
    return EFTCache.attach(cache, members.distinct_models)


# `pipeline` checks classes against these as well.
AutoModelForCausalLM.register(EFTConfig, EFTForCausalLM, exist_ok=True)
AutoModelForImageTextToText.register(EFTConfig, EFTForCausalLM, exist_ok=True)  # where members see
