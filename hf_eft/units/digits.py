"""What a token of bytes can be part of where digits are pieces of their own: of digits, of everything else, or of nothing."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

from tokenizers import Regex, pre_tokenizers

Role = Literal["elsewhere", "within", "across", "digits", "never"]


class _Numerals(NamedTuple):
    characters: frozenset[str]
    heads: frozenset[bytes]  # some first bytes of one, not all
    tails: frozenset[bytes]  # some last bytes
    parts: frozenset[bytes]  # some bytes, or all


@functools.cache
def _numerals() -> _Numerals:
    """The characters of `\\p{N}` as the `tokenizers` library knows them, which are all on the first two planes of Unicode."""
    every = "".join(chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000)
    runs = pre_tokenizers.Split(Regex(r"[^\p{N}]+"), "removed").pre_tokenize_str(every)
    characters = frozenset(letter for run, _ in runs for letter in run)
    spelled = [letter.encode() for letter in characters]
    heads = frozenset(text[:k] for text in spelled for k in range(1, len(text)))
    tails = frozenset(text[k:] for text in spelled for k in range(1, len(text)))
    inner = {text[j:k] for text in spelled for j in range(len(text)) for k in range(j + 1, len(text) + 1)}
    return _Numerals(characters, heads, tails, frozenset(inner))


def digit_role(token: bytes) -> tuple[Role, bool]:
    r"""
    What a token can be part of, where a piece of text is either of digits (`\p{N}`) or without any.

    Returns:
        `tuple[str, bool]`: Of pieces of digits, and whether a whole digit is in it, so that it can be part of nothing else. `"within"`: a
        digit, or some of its bytes. `"across"`: bytes from one digit into the next. `"digits"`: several whole digits. `"elsewhere"`: no
        part of digits. `"never"`: a digit with what is none, which no piece has.
    """
    numerals = _numerals()
    if token.isascii():
        digits = sum(0x30 <= byte < 0x3A for byte in token)
        if digits < len(token):
            return ("never" if digits else "elsewhere"), bool(digits)
        return ("digits" if digits > 1 else "within"), True
    head = len(token) - len(token.lstrip(bytes(range(0x80, 0xC0))))
    whole = token[head:].decode("utf-8", "ignore")
    middle = whole.encode()
    tail = token[head + len(middle) :]
    known = [letter in numerals.characters for letter in whole]
    if token[head : head + len(middle)] != middle or (any(known) and not all(known)):
        return "never", any(known)
    if not all(known):
        return "elsewhere", False
    if not known and not (head and tail):
        return ("within" if token in numerals.parts else "elsewhere"), False
    if (head and token[:head] not in numerals.tails) or (tail and tail not in numerals.heads):
        return ("never" if known else "elsewhere"), bool(known)
    if head or tail:
        return "across", bool(known)
    return ("digits" if len(known) > 1 else "within"), True
