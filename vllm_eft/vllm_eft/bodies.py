"""Bodies of requests as hf_eft's own server takes them, put as vLLM takes them, or refused by name. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any

from .engine import check_request, served_recipes
from .recipe import ASKED

_BEAMS = "use_beam_search"
# Parameters of OpenAI's API that change no token.
IGNORED = frozenset(
    "metadata prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier service_tier store user".split()
)
# Options of `generate`, which our own server takes in `generation_config`, and what vLLM calls them, the first that it has there.
_OPTIONS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    "max_new_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens"),
    "min_new_tokens": ("min_tokens",),
    "stop_strings": ("stop",),
    "num_return_sequences": ("n",),
}
_SAMPLING = ("top_p", "top_k", "min_p")


def rewritten(body: bytes, known: Collection[str] = (), temperature: float | None = None) -> bytes | None:
    r"""
    A body as vLLM takes it; nothing if it has no need to change.

    Args:
        body (`bytes`): What the client sent.
        known (`Collection[str]`, *optional*): The parameters that vLLM has at this path. It leaves out others in silence.
        temperature (`float`, *optional*):
            At which requests are sampled that say how (`top_p`) and not how warm, if those that say nothing are greedy.

    Raises:
        `ValueError`: If vLLM would leave something out, or it is said twice.
    """
    try:
        asked = json.loads(body)
    except ValueError:
        return None  # vLLM says what is wrong
    if not isinstance(asked, dict):
        return None
    before = json.loads(body)
    _put_recipe(asked)
    _put_strict(asked)
    options = asked.pop("generation_config", None)
    if known:
        _check_known(asked, known)
    _put_options(asked, options, known, temperature)
    return None if asked == before else json.dumps(asked).encode()


def misplaced(body: bytes) -> str | None:
    """The parameter of ours that a body has, for paths where it would be left out in silence."""
    try:
        asked = json.loads(body)
    except ValueError:
        return None
    if not isinstance(asked, dict):
        return None
    return next((key for key in ASKED if asked.get(key) is not None), None)


def _put_recipe(asked: dict[str, Any]) -> None:
    """Our parameters from the top of a body to `vllm_xargs`."""
    ours = {key: asked.pop(key) for key in ASKED if key in asked}
    extra = asked.get("vllm_xargs") or {}
    told = [key for key in ASKED if key in ours or (isinstance(extra, Mapping) and extra.get(key) is not None)]
    if told and asked.get(_BEAMS):
        raise ValueError(f"`{_BEAMS}` makes requests of its own, which have no `{told[0]}`: leave out one of them.")
    ours = {key: value for key, value in ours.items() if value is not None}
    if not ours:
        return
    if not isinstance(extra, Mapping) or ours.keys() & extra.keys():
        raise ValueError(f"{', '.join(map(repr, ours))} is said twice, in `vllm_xargs` as well. Say it once.")
    check_request({**extra, **ours})  # here, as vLLM would first read True as 1
    asked["vllm_xargs"] = {**extra, **{key: _listed(key, value) for key, value in ours.items()}}


def _put_strict(asked: dict[str, Any]) -> None:
    """A call that must be made keeps to its schema, as our own server has it; vLLM holds a tool to it that says so."""
    tools, choice = asked.get("tools"), asked.get("tool_choice")
    if not isinstance(tools, list) or not (choice == "required" or isinstance(choice, Mapping)):
        return
    for tool in tools:
        if isinstance(tool, dict) and tool.get("type") == "function":
            function = tool.get("function", tool)  # of a chat; of a response
            if isinstance(function, dict) and function.get("strict") is None:
                function["strict"] = True


def _listed(key: str, value: Any) -> Any:
    """Weights by name as numbers in the members' order, which is what vLLM lets through."""
    recipes = served_recipes()
    if not isinstance(value, Mapping) or not recipes:
        return value
    names = recipes[-1].names if key == "coefficients" else recipes[-1].tuned
    return [value.get(name, 0.0) for name in names]


def _check_known(asked: dict[str, Any], known: Collection[str]) -> None:
    for name, value in list(asked.items()):
        if name in known:
            continue
        if name in IGNORED or value is None:
            del asked[name]
            continue
        close = difflib.get_close_matches(name, [*ASKED, *known], n=1)
        raise ValueError(f"`{name}` is no parameter here" + (f"; did you mean `{close[0]}`?" if close else "."))


def _put_options(asked: dict[str, Any], given: Any, known: Collection[str], temperature: float | None) -> None:
    """`generation_config` of a request as parameters of vLLM."""
    options = json.loads(given) if isinstance(given, str) else given
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise ValueError(f"`generation_config` must be a JSON object of options of `generate`, got {given!r:.80}.")
    options = {name: value for name, value in options.items() if value is not None and value != []}
    draws = options.pop("do_sample", None)
    if draws not in (None, True, False):
        raise ValueError(f"`do_sample` must be true or false, got {draws!r:.80}.")
    for name, value in options.items():
        places = [place for place in _OPTIONS.get(name, ()) if not known or place in known]
        if not places:
            raise ValueError(f"`{name}` in `generation_config` is not heeded by vLLM here: leave it out.")
        said = next((place for place in _OPTIONS[name] if asked.get(place) is not None), places[0])
        if asked.get(said) not in (None, value):
            raise ValueError(
                f"`generation_config` says {name}={value!r}, and the request {said}={asked[said]!r}. Give one of them."
            )
        asked[said] = value
    drawn = [name for name in _SAMPLING if name in options or (name == "top_p" and asked.get(name) not in (None, 1))]
    if draws is False:
        if drawn or asked.get("temperature"):
            raise ValueError("`do_sample` is false, but the request says how tokens are drawn: leave one of them out.")
        asked["temperature"] = 0
    elif (draws or drawn) and asked.get("temperature") is None and temperature is not None:
        asked["temperature"] = temperature
