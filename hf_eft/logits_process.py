"""`EFTLogitsProcessor`: emulated fine-tuning of any model that `generate` runs, as an add-on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel

from . import prefix
from .adapters import by_adapter
from .bytes import in_vocabulary
from .combination import BASE, Coefficient, Combination
from .combine import combine
from .members import Members, named_members
from .prompts import MemberPrompts, warn_of_templates
from .reader import Reader
from .vocabulary import Vocabulary, end_tokens


class EFTLogitsProcessor(LogitsProcessor):
    r"""
    Adds to the scores of the model that `generate` runs (the *base*) what fine-tuning changed in a small one:
    `log_softmax(base + alpha (tuned - reference))` (EFT paper, equation 4). Negative weights on a safety-tuned delta undo its
    safety training.

    Contract:

    - **Reuse**: the small models' states are keyed on content. Before each call they are reconciled with the `input_ids` of the
      call (append, roll back, permute rows, start again), so one object serves any number of `generate` calls, prompts and batch
      sizes, interleaved ones included (each change of prompt reads the prompt again).
    - **Batching and padding**: left padding is recognised as the leading run of `pad_token_id`. Where that is ambiguous (the same id
      also begins prompts), pass the call's `attention_mask`, which is repeated for beams and returned sequences.
    - **Beams**: yes. The result is normalised, so that beam scores equal those of [`EFTForCausalLM`].
    - **Assisted decoding, prompt lookup, early exit**: yes; the assistant's drafts pass through this object as well. For an assistant
      with another vocabulary, name its width in `assistant_vocab_size`.
    - **Order**: `generate` runs guidance (`guidance_scale`), `sequence_bias`, `repetition_penalty`, `no_repeat_ngram_size`,
      `bad_words_ids`, `min_length`, `prefix_allowed_tokens_fn` and forced tokens *before* this processor: they act on the base's
      scores. What they forbid (`-inf`) stays forbidden; the strengths of bias, penalty and guidance are those for the base alone.
      Temperature, top-k, top-p and the other warpers, watermarking and `renormalize_logits` come after: they act on the
      combination. Where all must act on the combination, use [`EFTForCausalLM`].
    - **Generation config**: that of the base. A tuned model's end-of-turn tokens need `generation_config=tuned.generation_config`.
    - **`inputs_embeds`**: only with `input_ids`. Continuing from a returned cache: pass the full ids, not only the new ones.
    - **Continuous batching** (`generate_batch`, `cache_implementation="paged"`): not supported. **transformers drops logits processors
      there without a word**, and what you get is the base alone.
    - **Forwards per token**: one of each distinct small model. **Memory**: a cache for each until [`EFTLogitsProcessor.reset`].
    - **Threads**: calls from several threads are taken one after the other.

    Args:
        tuned (`PreTrainedModel` or `Mapping[str, PreTrainedModel]`):
            The model whose behaviour is wanted; or several by name, with a `combination` that weights them.
        reference (`PreTrainedModel`, *optional*):
            What `tuned` was before it was fine-tuned. May be left out if the combination has no use for it.
        alpha (`float`, *optional*): Strength of the behaviour delta; 1 if nothing else is given.
        beta (`float`, *optional*): Amplification of the up-scaling delta, instead of `alpha`.
        combination ([`Combination`], *optional*): Any other recipe, instead of `alpha` and `beta`. May be replaced between calls.
        attention_mask (`torch.LongTensor` of shape `(batch, prompt)`, *optional*):
            The mask of the prompts of the next `generate` call. May be replaced between calls.
        pad_token_id (`int`, *optional*):
            The id that pads prompts on the left. Defaults to the tuned model's, unless that also is a begin or end token.
        member_inputs (`Mapping[str, Mapping[str, torch.Tensor]]`, *optional*):
            By member, `input_ids` and `attention_mask` of shape `(batch, length)`: a prompt of its own in place of the call's, for the next
            `generate` call. Needs that call's `attention_mask`, which says where its prompt ends. May be replaced between calls.
        assistant_vocab_size (`int`, *optional*):
            The width of an assistant's logits that has another vocabulary: its scores are returned as they are.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*):
            The tokenizer of each member, `"base"` included, to have their contents compared. Tokens that one does not know are never
            generated.
        vocabulary (`str`, *optional*):
            `"bytes"` for members whose `tokenizers` differ (docs/tokenizers.md). The model that `generate` runs must then be a
            [`~hf_eft.bytes.ByteLevelModel`] too.

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
        self.combination = Combination.of(alpha, beta, combination, by_adapter(tuned))
        named = named_members(None, tuned, reference)
        given = in_vocabulary(vocabulary, named, self.combination.coefficients, tokenizers)
        self._members = Members(given, self.combination.coefficients)
        self._tokenizers = None if vocabulary == "bytes" else tokenizers
        self._looked_at_templates = False
        self._vocabularies: dict[int, Vocabulary] = {}  # by the width of the base
        self.combination.check_names((BASE, *self._members.names))
        self.attention_mask = attention_mask
        self.pad_token_id = pad_token_id
        self.assistant_vocab_size = assistant_vocab_size
        self.member_inputs = member_inputs
        self._readers: dict[str, Reader] = {}  # by the first of the members that read one prompt
        self._lock = threading.Lock()

    @property
    def member_inputs(self) -> Mapping[str, Mapping[str, torch.Tensor]] | None:
        """The prompts of members that have their own."""
        return self._member_inputs

    @member_inputs.setter
    def member_inputs(self, given: Mapping[str, Mapping[str, torch.Tensor]] | None) -> None:
        self._prompts = MemberPrompts(given or {}, self._members.names)
        self._member_inputs = given

    def reset(self) -> None:
        """Free the small models' states."""
        self._readers.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

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
        with self._lock:
            small = self._read(input_ids)
        vocabulary = self._vocabulary(scores.shape[-1])
        logits = {BASE: scores.unsqueeze(1), **{name: small[name].to(scores.device) for name in self._members.names}}
        distinct = {id(x): vocabulary.cut(x) for x in logits.values()}  # members that share logits go on sharing them
        logits = {name: distinct[id(x)] for name, x in logits.items()}
        combined = combine(logits, self.combination, self._scheduled(input_ids.shape[1], list(logits))).squeeze(
            1
        )  # (rows, vocab)
        combined = vocabulary.widen(combined, scores.shape[-1])
        combined.masked_fill_(scores == -torch.inf, -torch.inf)
        return combined.log_softmax(-1).to(scores.dtype)

    def _read(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every member's logits for the next token, each after its own prompt."""
        own = self._prompts.names
        common = [name for name in self._members.names if name not in own]
        answers = self._reader(common).read(input_ids, self._mask(input_ids)) if common else {}
        for name in own:
            ids, mask = self._prompts.followed_by(name, input_ids[:, self._prompt_length("A prompt of its own") :])
            answers |= self._reader([name]).read(ids, None if bool(mask.all()) else mask)
        return answers

    def _reader(self, names: list[str]) -> Reader:
        """The reader of members that read one prompt; its states are kept while the same members do."""
        reader = self._readers.get(names[0])
        if reader is None or list(reader.members.names) != names:
            reader = self._readers[names[0]] = Reader(self._members.only(names))
        return reader

    def _prompt_length(self, what: str) -> int:
        if self.attention_mask is None:
            raise ValueError(
                f"{what} counts from the end of the call's prompt, which the add-on is not told. Give the prompt's mask: "
                "`EFTLogitsProcessor(..., attention_mask=inputs['attention_mask'])`."
            )
        return self.attention_mask.shape[1]

    def _scheduled(self, length: int, names: list[str]) -> torch.Tensor | None:
        """The coefficients of a recipe with a schedule, `(1, members)`."""
        if not self.combination.scheduled:
            return None
        return self.combination.at([length - self._prompt_length("A schedule of coefficients")], names)

    def _check(self, input_ids: torch.Tensor, scores: torch.Tensor) -> None:
        if input_ids.dim() != 2 or scores.dim() != 2 or input_ids.shape[0] != scores.shape[0]:
            raise ValueError(
                f"Expected `input_ids` of shape (rows, length) and `scores` of shape (rows, vocab), got {tuple(input_ids.shape)} "
                f"and {tuple(scores.shape)}."
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

    def _mask(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """0 where a token is padding on the left, or `None` if none is. Pads after a finished row are tokens like any other."""
        rows, length = input_ids.shape
        if self.attention_mask is not None:
            given = self.attention_mask.to(input_ids.device)
            if given.dim() != 2 or rows % given.shape[0] or length < given.shape[1]:
                raise ValueError(
                    f"`attention_mask` has shape {tuple(given.shape)}, but `generate` asks for {rows} rows of {length} tokens. The mask "
                    "must be that of this call's prompts; set `processor.attention_mask` anew for each call."
                )
            given = given.repeat_interleave(rows // given.shape[0], dim=0)
            mask = torch.cat([given, given.new_ones(rows, length - given.shape[1])], dim=1)
        elif self.pad_token_id is not None:
            mask = 1 - prefix.leading_run(input_ids, self.pad_token_id)
        else:
            mask = 1 - self._guessed_padding(input_ids)
        return None if bool(mask.all()) else mask

    def _guessed_padding(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The leading run of the tuned model's pad token. If that also begins or ends texts, a guess that matters is refused."""
        config = self._members.models[self._members.main].generation_config
        pad = config.pad_token_id
        if pad is None:
            return torch.zeros_like(input_ids)
        run = prefix.leading_run(input_ids, pad)
        special = {config.bos_token_id, *end_tokens(config)}
        if pad not in special:
            return run
        lengths = run.sum(-1)
        if bool((lengths != lengths[0]).any()):
            raise ValueError(
                f"Some rows begin with more tokens {pad} than others, and {pad} both pads and begins or ends texts: is that padding? "
                "Say so: `EFTLogitsProcessor(..., attention_mask=inputs['attention_mask'])`, or `pad_token_id=`."
            )
        return torch.zeros_like(input_ids)
