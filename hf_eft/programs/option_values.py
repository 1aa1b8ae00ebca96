"""Which values an option of `generate` may have, by name. What is out of range here would end in an endless loop or a foreign error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..files.json_lines import shown
from ..prompts.messages import read_text

_MANY = 2**16  # drafted tokens, or the length of an n-gram: transformers makes a list of as many
_LONG = 2**31 - 1  # tokens
_CACHED = 2**24  # tokens of a static cache, which is made before a token is read
_ROWS = 1024  # beams or sequences of a prompt: each is a row with states of its own
_FACTOR = 1e4  # float32 takes it, and its inverse, to logits and back
_FLAGS = frozenset("disable_compile do_sample remove_invalid_values renormalize_logits use_cache use_mtp".split())
# The least and the most of whole numbers.
_WHOLE: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("max_new_tokens", "min_length", "min_new_tokens", "pad_token_id", "top_k"), (0, _LONG)),
    **dict.fromkeys(
        (
            "assistant_early_exit", "encoder_no_repeat_ngram_size", "max_matching_ngram_size", "no_repeat_ngram_size",
            "num_assistant_tokens", "prompt_lookup_num_tokens",
        ),
        (0, _MANY),
    ),
    "max_cache_len": (0, _CACHED),
    "num_beams": (1, _ROWS),
    "num_return_sequences": (1, _ROWS),
    "prefill_chunk_size": (1, _MANY),
}  # fmt: skip
# The same of numbers; 0 besides, which says nothing.
_NUMBERS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("encoder_repetition_penalty", "repetition_penalty", "temperature"), (1 / _FACTOR, _FACTOR)),
    **dict.fromkeys(("assistant_confidence_threshold", "epsilon_cutoff", "eta_cutoff", "min_p", "top_h", "top_p", "typical_p"), (0, 1)),
    "length_penalty": (-100, 100),
    "max_time": (0, 10**9),
}  # fmt: skip
_BIAS = 1e9  # that is as good as ruled out, or as certain, and float32 has it
_CHOICES: dict[str, tuple[Any, ...]] = {
    "early_stopping": (True, False, "never"),
    "num_assistant_tokens_schedule": ("constant", "heuristic", "heuristic_transient"),
}
_ONE_OR_MORE = ("eos_token_id", "forced_eos_token_id")
_SEVERAL = ("begin_suppress_tokens", "suppress_tokens")


def read_value(name: str, value: Any) -> Any:
    r"""
    The value of an option as it is meant.

    Args:
        name (`str`): The option.
        value (`Any`): What was given; not null, and nothing empty.

    Returns:
        `Any`: The value; a number that is whole as an `int`.

    Raises:
        `ValueError`: If the option cannot have this value, saying which ones it can.
    """
    if name == "stop_strings":
        for text in [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]:
            if not read_text(text, "each of `stop_strings`"):
                raise ValueError("`stop_strings` has an empty text, which ends every reply at once: leave it out")
    elif name == "cache_implementation":
        read_text(value, f"`{name}`")
    elif name in _FLAGS and not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false, got {shown(value)}")
    elif name in _CHOICES and not any(
        value is known or (isinstance(value, str) and value == known) for known in _CHOICES[name]
    ):
        raise ValueError(f"`{name}` must be one of {', '.join(map(shown, _CHOICES[name]))}, got {shown(value)}")
    elif name in _WHOLE:
        return _whole(f"`{name}`", value, *_WHOLE[name])
    elif name in _NUMBERS:
        _number(f"`{name}`", value, *_NUMBERS[name])
    elif name == "exponential_decay_length_penalty":
        start, factor = _pair(name, value, "[start, factor]")
        _whole(f"the start of `{name}`", start, 0, _LONG)
        _number(f"the factor of `{name}`", factor, 1 / _FACTOR, _FACTOR)
    else:
        _tokens_of(name, value, lambda token: None)
    return value


def check_tokens(options: Mapping[str, Any], size: int) -> None:
    r"""
    Raise unless every token that options name is one: what is not there would be suppressed, or ended with, in silence.

    Args:
        options (`Mapping[str, Any]`): What [`~hf_eft.programs.options.read_options`] gave.
        size (`int`): How many tokens there are.

    Raises:
        `ValueError`: Naming the option and the token.
    """
    for name, value in options.items():

        def check(token: int, name: str = name) -> None:
            if token >= size:
                raise ValueError(f"`{name}` names the token {token}, and the last one is {size - 1}")

        _tokens_of(name, [value] if name == "pad_token_id" else value, check)


def _tokens_of(name: str, value: Any, take: Callable[[int], None]) -> None:
    """Hand every token of an option's value to `take`. An option that names none is left alone."""
    if name == "sequence_bias":
        pairs = value.items() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        for pair in pairs:
            tokens, bias = _pair(name, pair, "[[tokens, bias], ...]")
            _each(name, tokens, take, "[[tokens, bias], ...]")
            _number(f"a bias of `{name}`", bias, -_BIAS, _BIAS)
    elif name == "bad_words_ids":
        for tokens in value if isinstance(value, list | tuple) else [value]:
            _each(name, tokens, take, "a list of lists of tokens")
    elif name in _SEVERAL or name == "pad_token_id":
        _each(name, value, take, "a list of tokens")
    elif name in _ONE_OR_MORE:
        least = -1 if name == "eos_token_id" else 0  # -1: nothing ends a text
        _each(name, value if isinstance(value, list | tuple) else [value], take, "a token, or a list of tokens", least)


def _each(name: str, tokens: Any, take: Callable[[int], None], expected: str, least: int = 0) -> None:
    if not isinstance(tokens, list | tuple) or not tokens:
        raise ValueError(f"`{name}` must be {expected}, got {shown(tokens)}")
    for token in tokens:
        take(_whole(f"a token of `{name}`", token, least, _LONG))


def _pair(name: str, value: Any, expected: str) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"`{name}` must be {expected}, got {shown(value)}")
    return value[0], value[1]


def _whole(what: str, value: Any, least: int, most: int) -> int:
    """A whole number. (20.0 is 20 in JSON: tables of numbers with gaps are written so.)"""
    _check_number(what, value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{what} must be a whole number, got {shown(value)}")
    if value < least:
        raise ValueError(f"{what} must be {least} or more, got {shown(value)}")
    if value > most:
        raise ValueError(f"{what} must be {most} or less, got {shown(value)}")
    return int(value)


def _number(what: str, value: Any, least: float, most: float) -> None:
    _check_number(what, value)
    if value != 0 and not least <= value <= most:
        raise ValueError(f"{what} must be from {least:g} to {most:g}, got {shown(value)}")


def _check_number(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} must be a number, got {shown(value)}")
