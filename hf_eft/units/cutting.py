"""Do tokenizers cut texts at the same places before they merge? Alike, alike but for digits, or not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .merges import TokenizerView

_DIGITS = re.compile(r"\\p\{N\}(\+|\{1(,\d*)?\})?\+?")
_NOTHING = re.compile(r"\(\?[=!][^()]*\)")  # looks ahead and takes nothing
_NO_NUMERAL = re.compile(  # a class without numerals, or with all but them and others
    r"\[\^(?:\\.|[^\[\]\\])*\\p\{N\}(?:\\.|[^\[\]\\])*\]|\[(?:\\p\{[LMPSZC][a-z]?\}|\\[srnt]|[^\[\]\\0-9\-&^])+\]|\\p\{[LMPSZC][a-z]?\}|\\[srnt]"
)
_TIMES = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[+?]?")


class Cut(NamedTuple):
    """How the cuts of several tokenizers compare: `"one"`, `"digits"` or `"several"`, and a remark on texts that are left out or why."""

    kind: Literal["one", "digits", "several"]
    remark: str = ""
    by_one: tuple[int, ...] = ()  # the tokenizers, by place, that take digits one by one


def compare_cuts(views: Sequence[TokenizerView], names: Sequence[str]) -> Cut:
    r"""
    Compare what tokenizers do to a text before they merge.

    Normalizers may differ in whether they compose characters (NFC), which leaves texts in that form, nearly all, as they are. Splits may
    differ in how many digits (`\p{N}`) are one piece, where a regular expression keeps digits apart from everything else: then all other
    pieces are the same, since each alternative but one takes no digit, and that one nothing else.
    """
    remark = ""
    plain = [[step for step in view.normalizer if step != {"type": "NFC"}] for view in views]
    if any(other != plain[0] for other in plain[1:]):
        at = next(k for k, other in enumerate(plain) if other != plain[0])
        return Cut("several", f"the normalizers of {names[0]!r} and {names[at]!r} differ")
    if len({len(view.normalizer) for view in views}) > 1:
        composing = [name for view, name in zip(views, names, strict=True) if {"type": "NFC"} in view.normalizer]
        remark = f"in composed characters (NFC), which {' and '.join(map(repr, composing))} makes of others"
    if all(view.pre_tokenizer == views[0].pre_tokenizer for view in views):
        return Cut("one", remark)
    masked = [_without_digits(view.pre_tokenizer) for view in views]
    if all(each is not None and each[0] == masked[0][0] for each in masked if masked[0] is not None) and masked[0] is not None:
        by_one = tuple(k for k, each in enumerate(masked) if each is not None and each[1] == r"\p{N}")
        return Cut("digits", remark, by_one)
    at = next(k for k, view in enumerate(views) if view.pre_tokenizer != views[0].pre_tokenizer)
    return Cut("several", f"{names[0]!r} and {names[at]!r} cut texts at different places before they merge")


def _without_digits(taken: Sequence[Mapping[str, Any]]) -> tuple[Any, str] | None:
    """A byte-level pre-tokenizer with its alternative for digits replaced, and that alternative; `None` if digits are not kept apart."""
    if len(taken) != 2 or taken[1] != {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
        return None
    split = taken[0]
    if (
        split["type"] != "Split"
        or "Regex" not in split["pattern"]
        or (split["behavior"], split["invert"]) != ("Isolated", False)
    ):
        return None
    parts = alternatives(split["pattern"]["Regex"])
    digits = [part for part in parts if _DIGITS.fullmatch(part)]
    if len(digits) != 1 or not all(takes_no_digit(part) for part in parts if part not in digits):
        return None
    return [{**split, "pattern": [None if part in digits else part for part in parts]}, *taken[1:]], digits[0]


def alternatives(pattern: str) -> list[str]:
    """What stands between the `|` of a regular expression, outside of groups and classes."""
    parts, depth, in_class, start = [], 0, False, 0
    for at in (found.start() for found in re.finditer(r"\\.|[\[\]()|]", pattern)):
        letter = pattern[at]
        if letter == "[" and not in_class:
            in_class = True
        elif letter == "]":
            in_class = False
        elif not in_class and letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == "|" and not in_class and depth == 0:
            parts.append(pattern[start:at])
            start = at + 1
    return [*parts, pattern[start:]]


def takes_no_digit(pattern: str) -> bool:
    r"""Whether a regular expression can take no character of `\p{N}`, as far as its parts are of a few known kinds."""
    rest = _NO_NUMERAL.sub("", _NOTHING.sub("", pattern))
    if "(?<" in rest:
        return False
    rest = _TIMES.sub("", re.sub(r"\(\?i?:", "(", rest))
    return re.fullmatch(r"[()|]*(?:[^\\\[\].^$0-9][()|]*)*", rest) is not None and not any(map(str.isnumeric, rest))
