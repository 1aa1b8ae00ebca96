"""`EFTLogitsProcessor`: emulated fine-tuning of any model that `generate` runs, as an add-on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel

from . import prefix
from .adapters import by_adapter
from .combination import BASE, Combination, combine
from .members import Members, named_members
from .reader import Reader


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
        assistant_vocab_size (`int`, *optional*):
            The width of an assistant's logits that has another vocabulary: its scores are returned as they are.

    Raises:
        `ValueError`: If a model is missing or does not fit, or the scores of a call do not.

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
        alpha: float | None = None,
        beta: float | None = None,
        combination: Combination | None = None,
        attention_mask: torch.Tensor | None = None,
        pad_token_id: int | None = None,
        assistant_vocab_size: int | None = None,
    ) -> None:
        given = named_members(None, tuned, reference)
        self.combination = Combination.of(alpha, beta, combination, by_adapter(tuned))
        self._members = Members(given, self.combination.coefficients)
        self.combination.check_names((BASE, *self._members.names))
        self.attention_mask = attention_mask
        self.pad_token_id = pad_token_id
        self.assistant_vocab_size = assistant_vocab_size
        self._reader = Reader(self._members)
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Free the small models' states."""
        self._reader.reset()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reader = Reader(self._members)
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
        with self._lock:
            small = self._reader.read(input_ids, self._mask(input_ids))
        logits = {BASE: scores.unsqueeze(1), **{name: x.to(scores.device) for name, x in small.items()}}
        combined = combine(logits, self.combination).squeeze(1)  # (rows, vocab)
        combined.masked_fill_(scores == -torch.inf, -torch.inf)
        return combined.log_softmax(-1).to(scores.dtype)

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
        if scores.shape[-1] != self._members.vocab_size:
            raise ValueError(
                f"The scores have {scores.shape[-1]} tokens, the small models {self._members.vocab_size}. If these are the scores "
                "of an assistant with another vocabulary, say so: `EFTLogitsProcessor(..., "
                f"assistant_vocab_size={scores.shape[-1]})`. Otherwise the base is of another family or padded to another width: "
                "bring the models to one width with `resize_token_embeddings`."
            )

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
        special = {config.bos_token_id, *_as_list(config.eos_token_id)}
        if pad not in special:
            return run
        lengths = run.sum(-1)
        if bool((lengths != lengths[0]).any()):
            raise ValueError(
                f"Some rows begin with more tokens {pad} than others, and {pad} both pads and begins or ends texts: is that padding? "
                "Say so: `EFTLogitsProcessor(..., attention_mask=inputs['attention_mask'])`, or `pad_token_id=`."
            )
        return torch.zeros_like(input_ids)


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
