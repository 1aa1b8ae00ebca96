"""How compositions are drawn: anything that may go together, and now and then what the package has to refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from composition_cases import ADAPTED, CHUNKED, KINDS, NAMES, PAGED, STATIC, Call, Case, Member, Rows
from families import EOS, VOCAB
from hypothesis import strategies as st

_WIDER = VOCAB + 6
_STRENGTHS = (1.0, 0.0, 0.5, 1.5, -0.5, 2.0)
_MASSES = (0.9, 0.5, 0.7, 0.99)
_RECIPES = ("alpha", "alpha", "alpha", "beta", "steer", "interpolate", "mix", "contrast", "guide")
_LEAVES = ("wrapper",) * 6 + ("add-on",) * 3 + ("batch",)
# With an add-on and a truncation they may leave a row without any token, of which nothing can be drawn (its docstring says so).
_FORBID = {"no_repeat_ngram_size", "bad_words_ids", "suppress_tokens"}
_DTYPES = ("float32",) * 14 + ("bfloat16",) * 3 + ("float16", "mixed")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    leaf = draw(st.sampled_from(_LEAVES))
    recipe = draw(_recipes(leaf))
    names = NAMES[recipe[0]]
    calls_wanted = 1 if leaf == "batch" else draw(st.sampled_from((1, 1, 2)))
    hows = [draw(_ways(leaf)) for _ in range(calls_wanted)]
    members = draw(_members(names, leaf, hows))
    alone = any(how["alone"] for how in hows)
    prompts = draw(_rows(1 if alone else draw(st.sampled_from((1, 2, 3)))))
    calls: list[Call] = []
    for number, how in enumerate(hows):
        goes_on = number > 0 and _can_go_on(calls[-1]) and draw(st.booleans())
        if leaf == "add-on" and (how["drafter"] is not None or how["states"] == "none"):
            goes_on = False  # the base, which is transformers' alone, reads the whole text again behind what a cache holds
        calls.append(draw(_calls(leaf, members, prompts, how, calls[-1] if goes_on else None)))
    told = "mask"
    if leaf == "add-on" and not any(isinstance(each, tuple) for each in recipe):
        told = draw(st.sampled_from(("mask", "pad")))
    truncation = draw(_truncations(recipe[0]))
    if leaf == "add-on" and (truncation is not None or recipe[0] == "contrast"):
        calls = [replace(call, options=_allowed(call)) for call in calls]
    return Case(members, recipe, truncation, leaf, told, prompts, tuple(calls), draw(st.integers(0, 999)))


def _allowed(call: Call) -> dict[str, Any]:
    drawn = call.samples and not call.searches
    return {name: value for name, value in call.options.items() if not (drawn and name in _FORBID)}


@st.composite
def _recipes(draw: st.DrawFn, leaf: str) -> tuple[Any, ...]:
    kind = draw(st.sampled_from([each for each in _RECIPES if leaf != "add-on" or "base" in NAMES[each]]))
    strength = st.sampled_from(_STRENGTHS)
    if kind in ("alpha", "beta", "interpolate", "guide"):
        if leaf != "batch" and draw(st.integers(0, 4)) == 4:
            return kind, tuple(draw(st.lists(strength, min_size=2, max_size=5)))
        return kind, draw(strength)
    if kind == "steer":
        return kind, draw(strength), draw(strength)
    if kind == "mix":
        w = draw(st.sampled_from((0.5, 0.25, 1.25)))
        return kind, w, 1 - w
    return kind, draw(st.sampled_from((0.5, 1.0, 0.1))), draw(st.sampled_from((0.1, 0.3, 0.01)))


@st.composite
def _truncations(draw: st.DrawFn, kind: str) -> tuple[str, float] | None:
    if kind in ("alpha", "beta"):
        rules: tuple[str, ...] = ("keep", "drop", "base", "plausible")
    else:
        rules = ("base", "plausible") if kind == "steer" else ()
    if not rules or draw(st.integers(0, 2)) < 2:
        return None
    rule = draw(st.sampled_from(rules))
    return rule, draw(st.sampled_from((0.1, 0.3) if rule == "plausible" else _MASSES))


# How a call decodes -----------------------------------------------------------------------------------------------------


@st.composite
def _ways(draw: st.DrawFn, leaf: str) -> dict[str, Any]:
    """A way of decoding, which states it keeps, and whether it is for one row only."""
    if leaf == "batch":
        return {"how": draw(st.sampled_from(("greedy", "greedy", "reject"))), "drafter": None, "states": None, "alone": False}
    hows = ["greedy", "greedy", "sample", "beams", "beam sample", "drafted", "drafted"]
    how = draw(st.sampled_from([*hows, "match", "drafted", "drafted"] if leaf == "wrapper" else hows))
    states = draw(st.sampled_from((None, None, None, None, "static", "chunks", "none")))
    static = states if states == "static" and leaf == "wrapper" else None  # the others are not for what is rolled back
    if how != "drafted":
        return {"how": how, "drafter": None, "states": static if how == "match" else states, "alone": False}
    theirs = draw(st.integers(0, 5)) == 5  # transformers' own loop
    ours = ("tuned", "base", "outsider", "lookup", *(("small", "small") if leaf == "wrapper" else ()))
    drafter = draw(st.sampled_from(("itself",) if theirs and leaf == "wrapper" else ours))
    hows = ["greedy", "greedy", "reject"] + (["match"] if leaf == "wrapper" and not theirs else [])
    states = None if theirs else static
    return {"how": draw(st.sampled_from(hows)), "drafter": drafter, "states": states, "alone": leaf == "add-on" or theirs}


def _can_go_on(call: Call) -> bool:
    """Whether the cache of a call is there, and that of its rows."""
    return not call.searches and call.returned == 1 and call.states in (None, "chunks")


@st.composite
def _members(draw: st.DrawFn, names: tuple[str, ...], leaf: str, hows: list[dict[str, Any]]) -> dict[str, Member]:
    """Of two or three kinds, some of them one object, some wider, some adapters."""
    pool = KINDS
    rare = draw(st.integers(0, 15)) == 15  # what will be refused
    if not rare:
        states = {how["states"] for how in hows}
        drafts = {how["drafter"] for how in hows}
        if leaf == "batch":
            pool = PAGED
        if "static" in states:
            pool = tuple(kind for kind in pool if kind in STATIC)
        if "chunks" in states:
            pool = tuple(kind for kind in pool if kind in CHUNKED)
        if "itself" in drafts or (leaf == "add-on" and drafts != {None}):  # transformers rolls the caches back
            pool = tuple(kind for kind in pool if kind in (*PAGED, "falcon"))
    count = min(draw(st.sampled_from((2, 3, 1))), len(pool))
    kinds = draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count, unique=True))
    dtype = draw(st.sampled_from(_DTYPES))
    members: dict[str, Member] = {}
    for place, name in enumerate(names):
        if members and draw(st.integers(0, 5)) == 5:
            members[name] = draw(st.sampled_from(list(members.values())))  # the same object
            continue
        member = Member(kinds[place % len(kinds)], place)
        if draw(st.integers(0, 7)) == 7:
            member = replace(member, width=_WIDER)
        own = draw(st.sampled_from(("float32", "bfloat16", "float16"))) if dtype == "mixed" else dtype
        members[name] = replace(member, dtype=own)
    tuned = members.get("tuned")
    if tuned is not None and tuned.dtype == "float32" and tuned.kind in ADAPTED and draw(st.integers(0, 4)) == 4:
        members = {name: replace(m, adapter=True) if m == tuned and name == "tuned" else m for name, m in members.items()}
        if "reference" in members and draw(st.booleans()):
            members["reference"] = tuned
    return members


# Prompts and calls ------------------------------------------------------------------------------------------------------

# Many tokens, or few, which come back: something to look up, and to be forbidden to repeat.
_TOKENS = st.one_of(st.integers(3, VOCAB - 1), st.integers(3, 6))


@st.composite
def _rows(draw: st.DrawFn, rows: int) -> Rows:
    return tuple(tuple(draw(st.lists(_TOKENS, min_size=1, max_size=9))) for _ in range(rows))


@st.composite
def _calls(
    draw: st.DrawFn, leaf: str, members: dict[str, Member], prompts: Rows, way: dict[str, Any], before: Call | None
) -> Call:
    how, drafter, names = way["how"], way["drafter"], list(members)
    if before is not None and how in ("beams", "beam sample"):
        how = "greedy" if how == "beams" else "sample"  # one cache does not serve several beams, in transformers either
    needed = "reference" if drafter == "small" else drafter
    if drafter in ("tuned", "base", "small") and needed not in names:
        drafter = names[-1]
    if leaf == "add-on" and drafter in names and members[drafter].width != members["base"].width:
        drafter = "lookup"  # transformers takes another width for another tokenizer
    # The oracle reads every beam of every step anew.
    new_tokens = draw(st.integers(1, 4 if how in ("beams", "beam sample") else 10))
    states = None if before is not None and way["states"] == "static" else way["states"]  # there is a cache already
    call = Call(how, new_tokens, draw(_options(leaf, how, new_tokens)), drafter=drafter, states=states)
    if drafter is not None:
        call = replace(call, block=draw(st.sampled_from((1, 2, 3, 5, 8, None))))
    if call.searches:
        call = replace(call, beams=draw(st.sampled_from((2, 3))))
    if leaf != "batch" and not way["alone"] and before is None:
        most = call.beams if call.searches else 2
        if (call.searches or call.samples) and draw(st.integers(0, 2)) == 2:
            call = replace(call, returned=most)
    if leaf != "batch":
        call = replace(call, scores=draw(st.booleans()))
    if leaf != "add-on" and call.returned == 1 and drafter != "itself" and draw(st.integers(0, 4)) == 4:
        rows = [tuple(draw(st.sampled_from(_STRENGTHS)) for _ in names) for _ in prompts]
        if all(any(row) for row in rows):
            call = replace(call, coefficients=tuple(rows))
    if before is not None:
        call = replace(call, goes_on=True, turn=tuple(draw(st.lists(_TOKENS, min_size=1, max_size=4))), own=before.own)
    elif leaf != "batch" and drafter != "itself" and way["states"] != "chunks" and draw(st.integers(0, 6)) == 6:
        others = draw(st.lists(st.sampled_from(names[1:]), min_size=1, max_size=2, unique=True))
        call = replace(call, own={name: draw(_rows(len(prompts))) for name in others})
    return call


@st.composite
def _options(draw: st.DrawFn, leaf: str, how: str, new_tokens: int) -> dict[str, Any]:
    """Processors, warpers and end tokens."""
    options: dict[str, Any] = {}

    def maybe(chance: int, name: str, *values: Any) -> None:
        if draw(st.integers(0, chance)) == chance:
            options[name] = draw(st.sampled_from(values))

    maybe(3, "eos_token_id", [EOS, *range(3, 14)], [EOS, 40])
    if leaf != "batch":
        maybe(7, "repetition_penalty", 1.5)
        maybe(7, "no_repeat_ngram_size", 2, 1)
        maybe(7, "bad_words_ids", [[5], [6, 7], [10]])
        maybe(7, "min_new_tokens", min(3, new_tokens), min(6, new_tokens))
        maybe(9, "sequence_bias", [[[7], 2.5], [[9, 11], -3.0]])
        maybe(9, "suppress_tokens", [5, 6, 7, 8])
    if how in ("sample", "match", "reject", "beam sample"):
        maybe(2, "temperature", 0.7, 1.4)
        maybe(4, "top_k", 5, 20)
        maybe(4, "top_p", 0.8, 0.5)
        maybe(4, "min_p", 0.05, 0.2)
    if "min_new_tokens" in options and how in ("beams", "beam sample"):
        del options["min_new_tokens"]
    if how in ("beams", "beam sample"):
        maybe(3, "length_penalty", 2.0, -1.0)
        maybe(3, "early_stopping", True, "never")
    return options
