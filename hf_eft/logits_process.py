"""`EFTLogitsProcessor`: emulated fine-tuning of any model that `generate` runs, as an add-on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import LogitsProcessor, PreTrainedModel

from .decoding.added import AddedVarying, prompt_length
from .decoding.given import Begun, Given, GivenByThread
from .decoding.reader import Reader
from .decoding.running import refuse_dropping, running
from .decoding.tokens_left import nothing_left
from .members import prefix
from .members.adapters import by_adapter
from .members.call import Lock, PerThread
from .members.learnt import recommended
from .members.members import Members
from .members.modalities import placeholders, refuse_placeholders, refuse_sounds
from .members.named import named_members
from .members.padding import filling, guessed
from .members.vocabulary import Vocabulary, end_tokens
from .prompts import MemberPrompts, warn_of_templates
from .prompts.pictures import tokenizers_of
from .recipe.combination import BASE, Coefficient, Combination
from .recipe.combine import certainly, combine
from .units.members import chosen, in_vocabulary, longer_tokens


class EFTLogitsProcessor(LogitsProcessor):
    r"""
    Adds to the scores of the model that `generate` runs (the *base*) what fine-tuning changed in a small one:
    `log_softmax(base + alpha (tuned - reference))` (EFT paper, equation 4). Negative weights on a safety-tuned delta undo its
    safety training.

    Contract:

    - **Reuse**: the small models' states are keyed on content. Before each call they are reconciled with the `input_ids` of the
      call (append, roll back, permute rows, start again), so one object serves any number of `generate` calls, prompts and batch
      sizes, interleaved ones included (each change of prompt reads the prompt again).
    - **Batching and padding**: left padding is recognised as the leading run of `pad_token_id`. Where ids alone do not say (no token is
      named for padding, or the same id also begins or ends texts), the call's `attention_mask` is asked for, which is repeated for beams
      and returned sequences. A batch that is padded with another token than the one that is named needs it as well.
    - **Beams**: yes. The result is normalised, so that beam scores equal those of [`EFTForCausalLM`].
    - **Assisted decoding, prompt lookup, early exit**: yes; the assistant's drafts pass through this object as well. For an assistant
      with another vocabulary, name its width in `assistant_vocab_size`.
    - **Order**: `generate` runs guidance (`guidance_scale`), `sequence_bias`, `repetition_penalty`, `no_repeat_ngram_size`,
      `bad_words_ids`, `min_length`, `prefix_allowed_tokens_fn` and forced tokens *before* this processor: they act on the base's
      scores. What they forbid (`-inf`) stays forbidden; the strengths of bias, penalty and guidance are those for the base alone.
      Where they forbid all that a truncation leaves, that is refused if no row has a token left; otherwise such a row's scores are all
      `-inf`: a search drops it, and torch refuses to draw from it.
      Temperature, top-k, top-p and the other warpers, watermarking and `renormalize_logits` come after: they act on the
      combination. Where all must act on the combination, use [`EFTForCausalLM`].
    - **Generation config**: that of the base. A tuned model's end-of-turn tokens need `generation_config=tuned.generation_config`.
    - **Phases** of a recipe (`alpha={"think": 1.2, "answer": 0.6}`): yes; their markers as tokens, or `tokenizers` that say which they are.
      A phase that a budget ends is refused where a processor before this one forbids its marker.
    - **`inputs_embeds`**: only with `input_ids`. Continuing from a returned cache: pass the full ids, not only the new ones.
    - **Continuous batching** (`generate_batch`, `cache_implementation="paged"`): not supported. **transformers drops logits processors
      there without a word**, and what you get is the base alone.
    - **Janus**: its own `generate`, too, **drops logits processors without a word**. Small models of that kind are refused; that the
      base is one cannot be seen. [`EFTForCausalLM`] combines their text.
    - **Pictures and films**: the small models see what `generate` was given (`pixel_values` and its like, looked up in the call that is
      running), each by its own encoder; or their own, with their own prompts, by `member_inputs`. One that takes no pictures is refused,
      unless `member_inputs` has a text for it. In a loop of one's own, where no call can be looked up, prompts are refused that hold a
      placeholder of a small model's configuration (`image_token_id` and its like). Sounds are refused.
    - **Forwards per token**: one of each distinct small model. **Memory**: a cache for each until [`EFTLogitsProcessor.reset`].
    - **Threads**: calls from several threads are taken one step after the other. What `attention_mask` and `member_inputs` were set to in a
      thread is for that thread's calls; a thread that set nothing takes what was set last, and refuses it where it may be another call's.

    Args:
        tuned (`PreTrainedModel` or `Mapping[str, PreTrainedModel]`):
            The model whose behaviour is wanted; or several by name, with a `combination` that weights them.
        reference (`PreTrainedModel`, *optional*):
            What `tuned` was before it was fine-tuned. May be left out if the combination has no use for it.
        alpha (`float`, *optional*):
            Strength of the behaviour delta. If nothing else is given, 1; or the strength that `tuned` says it is to be used at, if it
            learnt through a base, which is not looked at here: it is whatever model generates (docs/tuning.md).
        beta (`float`, *optional*): Amplification of the up-scaling delta, instead of `alpha`.
        combination ([`Combination`], *optional*): Any other recipe, instead of `alpha` and `beta`. May be replaced between calls.
        attention_mask (`torch.LongTensor` of shape `(batch, prompt)`, *optional*):
            The mask of the prompts of the next `generate` call. May be replaced between calls.
        pad_token_id (`int`, *optional*):
            The id that pads prompts on the left. Defaults to the tuned model's, unless that also is a begin or end token.
        member_inputs (`Mapping[str, Mapping[str, torch.Tensor]]`, *optional*):
            By member, `input_ids` and `attention_mask` of shape `(batch, length)` and pictures: a prompt of its own in place of the call's,
            for the next `generate` call. Needs that call's `attention_mask`, which says where its prompt ends. May be replaced between
            calls.
        assistant_vocab_size (`int`, *optional*):
            The width of an assistant's logits that has another vocabulary: its scores are returned as they are.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*):
            The tokenizer of each member, `"base"` included, to have their contents compared. Tokens that one does not know are never
            generated.
        vocabulary (`str`, *optional*):
            `"tokens"`, `"bytes"` or `"auto"` for members whose `tokenizers` differ (docs/tokenizers.md). The model that `generate` runs
            must then be read so too: a [`~hf_eft.units.TokenLevelModel`] or [`~hf_eft.bytes.ByteLevelModel`].

    Raises:
        `ValueError`: If a model is missing or does not fit, or the scores of a call do not.

    Warns:
        `UserWarning`, once: If the members' chat templates differ, the first prompt ends as one of them does, and nothing was said of
            `member_inputs`.

    Example:

    ```python
    >>> from hf_eft import EFTLogitsProcessor, tiny

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> inputs = tokenizer(tiny.questions()[0].prompt, return_tensors="pt")
    >>> processor = EFTLogitsProcessor(tuned, reference)
    >>> ids = base.generate(**inputs, logits_processor=[processor], max_new_tokens=24)
    ```
    """

    supports_continuous_batching = False
    is_stateless = True  # what it answers depends on the tokens alone: its states are found by them

    def __init__(
        self,
        tuned: PreTrainedModel | Mapping[str, PreTrainedModel] | None = None,
        reference: PreTrainedModel | None = None,
        alpha: Coefficient | None = None,
        beta: Coefficient | None = None,
        combination: Combination | None = None,
        attention_mask: torch.Tensor | None = None,
        pad_token_id: int | None = None,
        member_inputs: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        assistant_vocab_size: int | None = None,
        tokenizers: Mapping[str, Any] | None = None,
        vocabulary: str | None = None,
    ) -> None:
        recipe = Combination.of(recommended(alpha, beta, combination, tuned), beta, combination, by_adapter(tuned))
        vocabulary, units = chosen(vocabulary, tokenizers)
        given, _ = in_vocabulary(vocabulary, named_members(None, tuned, reference), recipe.coefficients, tokenizers, units)
        self._members = Members(given, recipe.coefficients)
        refuse_dropping(self._members.models)
        self.combination = recipe
        self._tokenizers = tokenizers_of(tokenizers) if vocabulary is None else None
        self._longer = longer_tokens(self._members.models.values())
        self._looked_at_templates = False
        self._vocabularies: dict[int, Vocabulary] = {}  # by the width of the base
        self._placeholders = placeholders(model.config for model in self._members.models.values())
        self._given = GivenByThread(Given(attention_mask, member_inputs, self._prompts_of(member_inputs)))
        self._begun = PerThread()  # how the call that is running here began
        self.pad_token_id = pad_token_id
        self.assistant_vocab_size = assistant_vocab_size
        self._readers: dict[str, Reader] = {}  # by the first of the members that read one prompt
        self._varying = AddedVarying()
        self._lock = Lock()

    @property
    def combination(self) -> Combination:
        """The recipe. May be replaced between calls."""
        return self._combination

    @combination.setter
    def combination(self, combination: Combination) -> None:
        combination.check_names((BASE, *self._members.names))
        self._combination = combination

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """The mask of the prompts of this thread's next call."""
        return self._given.current.attention_mask

    @attention_mask.setter
    def attention_mask(self, mask: torch.Tensor | None) -> None:
        with self._lock:
            self._given.replace("attention_mask", mask)

    @property
    def member_inputs(self) -> Mapping[str, Mapping[str, torch.Tensor]] | None:
        """The prompts of members that have their own, in this thread's next call."""
        return self._given.current.member_inputs

    @member_inputs.setter
    def member_inputs(self, given: Mapping[str, Mapping[str, torch.Tensor]] | None) -> None:
        prompts = self._prompts_of(given)
        with self._lock:
            self._given.replace("member_inputs", given, prompts=prompts)

    def _prompts_of(self, given: Mapping[str, Mapping[str, torch.Tensor]] | None) -> MemberPrompts:
        return MemberPrompts(given or {}, self._members.names)

    def reset(self) -> None:
        """Free the small models' states."""
        with self._lock:
            self._readers.clear()
            self._begun = PerThread()

    def __getstate__(self) -> dict[str, Any]:
        own = {
            "_readers": {},
            "_lock": Lock(),
            "_begun": PerThread(),
            "_varying": AddedVarying(),
            "_given": self._given.apart(),
        }
        return {**self.__dict__, **own}

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): Every token so far, the prompt included.
            scores (`torch.FloatTensor` of shape `(rows, vocab)`): The base's logits or log-probs for the next one.

        Returns:
            `torch.FloatTensor` of shape `(rows, vocab)`: Normalised log-probs of the combination; `-inf` where `scores` has it.
        """
        if scores.shape[-1] == self.assistant_vocab_size != self._members.vocab_size:
            return scores
        self._check(input_ids, scores)
        if not self._looked_at_templates:  # later, what ends as a template does may have been generated
            self._looked_at_templates = True
            if self.member_inputs is None and self._tokenizers:
                warn_of_templates(self._tokenizers, input_ids)
        combination = self.combination
        with self._lock:
            given = self._given.take(input_ids)
            small = self._read(input_ids, given)
            vocabulary, names = self._vocabulary(scores.shape[-1]), (BASE, *self._members.names)
            mask = cast(Begun, self._begun.value).mask_of(input_ids)
            varying = self._varying.at(combination, given, input_ids, mask, names, self._tokenizers, vocabulary)
        logits = {BASE: scores.unsqueeze(1), **{name: small[name].to(scores.device) for name in self._members.names}}
        distinct = {id(x): vocabulary.cut(x) for x in logits.values()}  # members that share logits go on sharing them
        logits = {name: distinct[id(x)] for name, x in logits.items()}
        combined = combine(logits, combination, varying[0])  # (rows, 1, vocab)
        combined = vocabulary.widen(combined, scores.shape[-1])
        combined = certainly(combined, varying[1]).squeeze(1)  # (rows, vocab)
        combined.masked_fill_(scores == -torch.inf, -torch.inf)
        none = combined.amax(-1, keepdim=True) == -torch.inf  # (rows, 1)
        must = none if varying[1] is None else none & (varying[1].to(none.device) >= 0)  # nothing else may stand there
        if bool(none.all()) or (varying[1] is not None and bool(must.any())):
            raise nothing_left(int(must.int().argmax()))
        return combined.log_softmax(-1).masked_fill_(none, -torch.inf).to(scores.dtype)

    def _read(self, input_ids: torch.Tensor, given: Given) -> dict[str, torch.Tensor]:
        """Every member's logits for the next token, each after its own prompt."""
        own = given.prompts.names
        common = [name for name in self._members.names if name not in own]
        begun = self._begun_with(input_ids, given, common)
        answers: dict[str, torch.Tensor] = {}
        for names in ([common] if common else []) + [[name] for name in own]:
            if names == common:
                ids, mask = input_ids, begun.mask_of(input_ids)
            else:
                prompt = prompt_length(given, "A prompt of its own")
                ids, mask = given.prompts.followed_by(names[0], input_ids[:, prompt:])
            reader = self._reader(names)
            sights = begun.seen_by(reader.members, names[0])
            answers |= reader.read(*_read_as(ids, mask, self._rows(names)), sights)
        return answers

    def _rows(self, names: list[str]) -> int:
        return min(self._members.distinct[self._members.owner[name]].rows for name in names)

    def _reader(self, names: list[str]) -> Reader:
        """The reader of members that read one prompt; its states are kept while the same members do."""
        reader = self._readers.get(names[0])
        if reader is None or list(reader.members.names) != names:
            reader = self._readers[names[0]] = Reader(self._members.only(names))
        return reader

    def _check(self, input_ids: torch.Tensor, scores: torch.Tensor) -> None:
        if input_ids.dim() != 2 or scores.dim() != 2 or input_ids.shape[0] != scores.shape[0]:
            raise ValueError(
                f"Expected `input_ids` of shape (rows, length) and `scores` of shape (rows, vocab), got {tuple(input_ids.shape)} "
                f"and {tuple(scores.shape)}."
            )
        if self._longer is not None and bool((scores[:, self._longer.to(scores.device)] > -torch.inf).any()):
            raise ValueError(
                "These members are combined by tokens that all have (`vocabulary='tokens'`), and the model that `generate` runs gives "
                "scores to longer ones. Run the base's view: `hf_eft.units.read_in_units({'base': base, ...}, tokenizers)['base']`."
            )
        if input_ids.shape[1] == 0:
            raise ValueError(
                "`generate` was given `inputs_embeds` without `input_ids`: the small models cannot know the prompt. Pass the ids as "
                "well."
            )

    def _vocabulary(self, width: int) -> Vocabulary:
        """The tokens that a base of this width and the small models have."""
        if width not in self._vocabularies:
            try:
                self._vocabularies[width] = Vocabulary({BASE: width, **self._members.vocabulary.widths}, self._tokenizers)
            except ValueError as error:
                raise ValueError(
                    f"{error} If these are the scores of an assistant with another vocabulary, say so: "
                    f"`EFTLogitsProcessor(..., assistant_vocab_size={width})`."
                ) from error
        return self._vocabularies[width]

    def _begun_with(self, input_ids: torch.Tensor, given: Given, common: list[str]) -> Begun:
        """How the call began that asks about these tokens, which the members `common` read."""
        begun, call = self._begun.value, running(self)
        if begun is None or not begun.leads_to(input_ids, given, self.pad_token_id, call):
            pictures = {} if call is None else call.pictures
            if common and call is not None:
                refuse_sounds(call.given)
            if common and not pictures:
                refuse_placeholders(input_ids, self._placeholders)
            # 0 where a token is padding on the left. Pads after a finished row are tokens like any other.
            mask = self._mask_of_prompts(input_ids, given)
            begun = self._begun.value = Begun(input_ids.clone(), given, self.pad_token_id, mask, call, pictures)
        begun.longest = max(begun.longest, input_ids.shape[1])
        return begun

    def _mask_of_prompts(self, input_ids: torch.Tensor, given: Given) -> torch.Tensor:
        """The same as far as something is said of it, `(rows, length)` or shorter."""
        rows, length = input_ids.shape
        if given.attention_mask is not None:
            mask = given.attention_mask.to(input_ids.device)
            if mask.dim() != 2 or rows % mask.shape[0] or length < mask.shape[1]:
                raise ValueError(
                    f"`attention_mask` has shape {tuple(mask.shape)}, but `generate` asks for {rows} rows of {length} tokens. The mask "
                    "must be that of this call's prompts; set `processor.attention_mask` anew for each call."
                )
            return mask.repeat_interleave(rows // mask.shape[0], dim=0)
        if self.pad_token_id is not None:
            return 1 - prefix.leading_run(input_ids, self.pad_token_id)
        config = self._members.models[self._members.main].generation_config
        return 1 - guessed(input_ids, config.pad_token_id, config.bos_token_id, end_tokens(config))


def _read_as(input_ids: torch.Tensor, mask: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens and mask for a reader. Rows that have ended go on with a token that all have, where what fills them has no row in a table."""
    if bool((input_ids[:, -1] >= rows).any()):
        input_ids = input_ids.masked_fill(filling(input_ids, rows).bool(), 0)
    return input_ids, None if bool(mask.all()) else mask
