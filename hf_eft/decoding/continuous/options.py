"""Which options of `generate` a batch heeds, which cannot matter in it, and which it refuses. Every option is one of these."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from transformers import GenerationConfig

from ...members.combined import Generates

# Every request of a batch may have its own of these.
_OF_A_REQUEST = frozenset({"do_sample", "eos_token_id", "max_new_tokens", "temperature", "top_k", "top_p"})
# All requests of a batch share these: tokens are chosen by what the scores of a row are, without a look at what was said before.
_OF_A_BATCH = frozenset(
    {
        "continuous_batching_config", "epsilon_cutoff", "eta_cutoff", "max_length", "min_p", "num_return_sequences",
        "remove_invalid_values", "renormalize_logits", "suppress_tokens", "top_h", "typical_p",
    }
)  # fmt: skip
HEEDED = _OF_A_REQUEST | _OF_A_BATCH

# No token depends on these here: they are about padding, or about searches and assistants, which are refused by other names.
WITHOUT_EFFECT = frozenset(
    {
        "assistant_confidence_threshold", "assistant_ensemble_weight", "assistant_lookbehind", "bos_token_id",
        "decoder_start_token_id", "disable_compile", "diversity_penalty", "early_stopping", "length_penalty", "low_memory",
        "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "pad_token_id", "speculation_type",
        "target_lookbehind", "transformers_version", "use_cache",
    }
)  # fmt: skip

_PAST = "needs what was said before, which is not at hand"
_SEARCH = "asks for a search, and requests are not searched"
_END = "is not looked at when requests end"
_OUTPUT = "asks for more than tokens, which is not kept"
_CACHE = "is for a cache of another kind"
_DRAFT = "asks for drafts, which are not made"

# By option: the value that asks for nothing (`None` always does), and why others are refused.
REFUSED: Mapping[str, tuple[Any, str]] = {
    "assistant_early_exit": (None, _DRAFT),
    "bad_words_ids": (None, _PAST),
    "begin_suppress_tokens": (None, _PAST),
    "cache_config": (None, _CACHE),
    "cache_implementation": ("paged", _CACHE),
    "compile_config": (None, "asks for compilation, which is for one model"),
    "constraints": (None, _SEARCH),
    "dola_layers": (None, _SEARCH),
    "encoder_no_repeat_ngram_size": (0, _PAST),
    "encoder_repetition_penalty": (1.0, _PAST),
    "exponential_decay_length_penalty": (None, _PAST),
    "force_words_ids": (None, _SEARCH),
    "forced_bos_token_id": (None, _PAST),
    "forced_eos_token_id": (None, _PAST),
    "guidance_scale": (1.0, "needs a second prompt, which is not read"),
    "is_assistant": (False, _DRAFT),
    "max_cache_len": (None, _CACHE),
    "max_time": (None, _END),
    "min_length": (0, _PAST),
    "min_new_tokens": (0, _PAST),
    "no_repeat_ngram_size": (0, _PAST),
    "num_beam_groups": (1, _SEARCH),
    "num_beams": (1, _SEARCH),
    "output_attentions": (False, _OUTPUT),
    "output_hidden_states": (False, _OUTPUT),
    "output_logits": (False, _OUTPUT),
    "output_scores": (False, _OUTPUT),
    "penalty_alpha": (0.0, _SEARCH),
    "prefill_chunk_size": (None, "is `max_batch_tokens` of the `ContinuousBatchingConfig` here"),
    "prompt_lookup_num_tokens": (None, _DRAFT),
    "repetition_penalty": (1.0, _PAST),
    "return_dict_in_generate": (False, _OUTPUT),
    "sequence_bias": (None, _PAST),
    "stop_strings": (None, _END),
    "token_healing": (False, "would change the prompt"),
    "use_mtp": (False, _DRAFT),
    "watermarking_config": (None, _PAST),
}

KNOWN = HEEDED | WITHOUT_EFFECT | REFUSED.keys()


class Whole(GenerationConfig):
    """A generation configuration in which nothing is left open, for the model's own to fill."""


def whole(
    model: Generates,
    generation_config: GenerationConfig | None,
    options: Mapping[str, Any] | None = None,
    place: str = "of the `generation_config` that was given",
) -> Whole:
    r"""
    All that a call asks for, as `generate` understands it: its options, then its configuration, then the model's.

    Args:
        model ([`EFTForCausalLM`]): The model.
        generation_config (`GenerationConfig`, *optional*): The call's. Left as it is.
        options (`Mapping[str, Any]`, *optional*): The call's keywords.
        place (`str`, *optional*): What `generation_config` is, for errors.

    Raises:
        `ValueError`: If there is no option of such a name.
        `NotImplementedError`: If requests in a batch cannot have it, saying where it comes from.
    """
    options = {} if options is None else options
    if isinstance(generation_config, Whole) and not options:
        return generation_config
    own = vars(model.generation_config)
    given = {} if generation_config is None else vars(generation_config)
    # What a checkpoint's configuration holds beside options, `generate` does not look at either.
    strange = [name for name in given if name not in KNOWN and not name.startswith("_") and name not in own]
    check_names([*options, *strange], KNOWN)

    filled, _ = model._prepare_generation_config(generation_config)
    filled.update(**options)
    if all(source.get("max_length") is None for source in (options, given, own)):
        filled.max_length = None  # transformers' default, 20, is nobody's wish
    if filled.eos_token_id is None:
        filled.eos_token_id = -1  # requests end at their lengths only
    everything = Whole()
    everything.__dict__.update(vars(filled))
    places = {name: place for name, value in given.items() if value is not None}
    check(model, everything, {**places, **dict.fromkeys(options, "of this call")})
    return everything


def check_names(names: Collection[str], known: Collection[str]) -> None:
    """Raise `ValueError` if an option has no such name."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"Did you mean `{near[0]}`?" if near else "Leave it out."
            raise ValueError(f"There is no option `{name}` of requests that are batched continuously. {hint}")


def check(model: Generates, config: GenerationConfig, places: Mapping[str, str] | None = None) -> None:
    r"""
    Raise if tokens are to be chosen in a way that requests in a batch cannot be.

    Args:
        model ([`EFTForCausalLM`]): The model, whose own configuration an option may come from.
        config (`GenerationConfig`): How tokens are chosen.
        places (`Mapping[str, str]`, *optional*): By option, where it comes from if not from the model.
    """
    fields = vars(GenerationConfig())
    for name, value in vars(config).items():
        if value is None or name.startswith("_") or name in HEEDED or name in WITHOUT_EFFECT:
            continue
        if name in REFUSED:
            nothing, reason = REFUSED[name]
            if nothing is None or not (value == nothing):
                raise refusal(*_told(model, name, value, nothing, reason, places or {}))
        elif name in fields:
            raise refusal(*_told(model, name, value, None, "is not known to this release of hf_eft", places or {}))


def check_request(batch: GenerationConfig, config: Whole) -> None:
    """Raise if a request asks for what a batch that has begun, for all its requests alike, cannot give to one."""
    for name in sorted(_OF_A_BATCH):
        wanted, shared = getattr(config, name), getattr(batch, name)
        if wanted != shared and not (name == "max_length" and config.max_new_tokens is not None):
            raise refusal(f"`{name}` is {shared!r} for all requests of this batch, not {wanted!r}", "Leave it out")


def others_of(batch: Whole, config: Whole) -> dict[str, Any]:
    """The options of `config` that requests could not have in a batch that began with other ones."""
    of_a_request = {"max_new_tokens"} if config.max_new_tokens is not None else set()
    names = HEEDED - {"continuous_batching_config"} - of_a_request
    return {name: getattr(config, name) for name in sorted(names) if getattr(config, name) != getattr(batch, name)}


def _told(model: Generates, name: str, value: Any, nothing: Any, reason: str, places: Mapping[str, str]) -> tuple[str, str]:
    """What is wrong with an option and where it comes from, and what to do about it."""
    if name in places and (places[name] == "of this call" or not _is_own(model, name, value)):
        return f"`{name}` {places[name]} is {value!r}: it {reason}", "Leave it out"
    members = [f"{each!r}" for each, member in model.members.items() if _is_own(member, name, value)]
    of = f", as in that of the member {members[0]}" if members else ""
    return (
        f"`{name}` is {value!r} in the model's own `generation_config`{of}: it {reason}",
        f"Set `model.generation_config.{name} = {nothing!r}`",
    )


def _is_own(model: Any, name: str, value: Any) -> bool:
    own = getattr(model.generation_config, name, None)
    return own is not None and bool(own == value)


def refusal(reason: str, remedy: str) -> NotImplementedError:
    """Why something cannot be batched continuously, and what to do."""
    return NotImplementedError(
        f"Continuous batching would not give the tokens of `generate`: {reason}. {remedy}, or use `generate`."
    )
