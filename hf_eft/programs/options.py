"""Options of `generate` as users give them, in lines and on command lines: what they mean, and what cannot be heeded is named."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Mapping
from typing import Any

from .option_values import read_value

# What says how tokens are drawn, and nothing where none is drawn.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty")
_DRAFTS = ("assistant_confidence_threshold", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule")

_TEXT_ONLY = "only text is returned"
_NO_VALUE = "it is no plain value"
_MOVED = "transformers has moved it out of `generate`"
# Settings of `generate` that are not taken, and why.
_NOT_TAKEN = {
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate"), _TEXT_ONLY
    ),
    **dict.fromkeys(("cache_config", "compile_config", "continuous_batching_config", "watermarking_config"), _NO_VALUE),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id", "forced_bos_token_id"), "there is always a prompt"),
    **dict.fromkeys(
        (
            "constraints",
            "diversity_penalty",
            "dola_layers",
            "force_words_ids",
            "low_memory",
            "num_beam_groups",
            "penalty_alpha",
        ),
        _MOVED,
    ),
    **dict.fromkeys(
        ("assistant_ensemble_weight", "assistant_lookbehind", "speculation_type", "target_lookbehind"),
        "a tuned member or the prompt drafts, in the members' own tokens, and what comes out is as without drafts",
    ),
    "guidance_scale": "transformers' processor for it takes no notice of padding; guidance is a combination of prompts",
    "is_assistant": "the tuned model is told so itself",
    "max_length": "it counts the prompt as well; say `max_new_tokens`",
    "token_healing": "the tokens of a prompt stay as they are",
    "transformers_version": _NO_VALUE,
}


@functools.cache
def option_names() -> frozenset[str]:
    """The options of `generate` that a command line or a line of a batch run may give."""
    from transformers import GenerationConfig

    return frozenset(name for name in GenerationConfig().to_dict() if not name.startswith("_") and name not in _NOT_TAKEN)


def check_name(name: str, others: Collection[str] = (), written: str | None = None) -> None:
    r"""
    Raise unless there is an option of this name.

    Args:
        name (`str`): The name.
        others (`Collection[str]`, *optional*): What else could be meant, to be suggested.
        written (`str`, *optional*): How the user wrote it, if it is not by its name.

    Raises:
        `ValueError`: Saying why it is not taken, or which one could be meant.
    """
    written = repr(name) if written is None else written
    if name in option_names():
        return
    if name in _NOT_TAKEN:
        raise ValueError(f"{written} is no option here: {_NOT_TAKEN[name]}")
    close = difflib.get_close_matches(name, sorted({*option_names(), *others}), n=1)
    spelled = close and (repr(close[0]) if written.startswith("'") else f"--{close[0].replace('_', '-')}")
    raise ValueError(f"{written} is no option of `generate`" + (f"; did you mean {spelled}?" if close else ""))


def read_options(given: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    r"""
    Options as they are meant.

    - Null is absent. An empty list or object is none: not what was read before either.
    - An option of sampling (`temperature`, `top_p`, `top_k` and their like) samples, as OpenAI's clients expect it; a `temperature` of 0
      is greedy. Beside `do_sample=False` it is refused.

    Args:
        given (`Mapping[str, Any]`): Options of `generate`.
        before (`Mapping[str, Any]`, *optional*):
            What was read before and holds where these say nothing else. What it says about sampling does not hold where these decide
            that nothing is drawn.

    Returns:
        `dict[str, Any]`: All of them. Reading them again gives the same.

    Raises:
        `ValueError`: If one has a value that cannot be heeded, naming it.

    Example:

    ```python
    >>> from hf_eft.programs.options import read_options

    >>> read_options({"temperature": 0.7, "top_k": None, "stop_strings": []})
    {'temperature': 0.7, 'do_sample': True}
    >>> read_options({"temperature": 0}, before={"do_sample": True, "top_p": 0.9})
    {'do_sample': False}
    ```
    """
    own = {name: read_value(name, value) for name, value in given.items() if value is not None and not _is_empty(name, value)}
    asked = [name for name in _SAMPLING if name in own]
    if own.get("temperature") == 0 and own.get("do_sample") is not True:
        own = {**_without_sampling(own), "do_sample": False}
    elif asked and own.get("do_sample") is False:
        raise ValueError(f"`{asked[0]}` says how tokens are drawn, but `do_sample` is false: leave one of them out")
    elif asked:
        own["do_sample"] = True
    none = [name for name, value in given.items() if value is not None and name not in own]
    held = {name: value for name, value in (before or {}).items() if name not in none}
    return {**(_without_sampling(held) if own.get("do_sample") is False else held), **own}


def check_together(options: Mapping[str, Any], num_beams: int | None, drafted: bool = False) -> None:
    r"""
    Raise if an option says something about a way of decoding that was not asked for.

    Args:
        options (`Mapping[str, Any]`): What [`read_options`] gave.
        num_beams (`int`, *optional*): The model's own, which holds where the options have none.
        drafted (`bool`, *optional*, defaults to `False`): Whether a model drafts.
    """
    without = []
    if options.get("num_beams", num_beams) in (None, 1):
        without += [(name, "is for beams: give `num_beams`, 2 or more") for name in _BEAMS]
    if not (drafted or "prompt_lookup_num_tokens" in options or "assistant_early_exit" in options):
        without += [(name, "is for drafted tokens: give `prompt_lookup_num_tokens`, or let a model draft") for name in _DRAFTS]
    if "cache_implementation" not in options:
        without.append(("max_cache_len", "is for static caches: give `cache_implementation`"))
    for name, remedy in without:
        if name in options:
            raise ValueError(f"`{name}` {remedy}, or leave it out")


def _without_sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _SAMPLING}


def _is_empty(name: str, value: Any) -> bool:
    if not isinstance(value, list | tuple | dict) or value:
        return False
    if name == "eos_token_id":
        raise ValueError("`eos_token_id` is empty: name a token, or leave it out for the model's own")
    return True
