"""How a tokenizer makes its tokens: what it does to texts beforehand, and the merges of a BPE that ever happen."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from tokenizers import models

from ..bytes.tokens import token_bytes

_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")
# What `ByteLevel` splits texts by on its own (`tokenizers`, pre_tokenizers/byte_level.rs).
_GPT2 = {
    "type": "Split",
    "pattern": {"Regex": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"},
    "behavior": "Isolated",
    "invert": False,
}
_OF_TEXTS = frozenset(bytes([byte]) for byte in range(0xF5) if byte not in (0xC0, 0xC1))  # bytes that occur in UTF-8

Merge = tuple[bytes, bytes]


@dataclass(frozen=True, eq=False)
class TokenizerView:
    r"""
    A tokenizer as far as it decides which tokens a text becomes, in bytes, so that `Ġ` and `▁` are both a space.

    Attributes:
        kind (`str`): The tokenizer's model: `"BPE"`, `"Unigram"`, `"WordPiece"`, `"WordLevel"`, or the class's name if it tells nothing.
        content (`str`): All of it but ids: tokenizers of one content make the same tokens of every text.
        normalizer, pre_tokenizer (`list[dict]`): Their steps, as the `tokenizers` library writes them.
        tokens (`Sequence[bytes | None]`): By id, as [`token_bytes`] gives them.
        names (`Mapping[str, int]`): The id of every token.
        letters (`Mapping[bytes, int]`): What merging starts from: characters, or bytes for a byte-level BPE.
        fallback (`Mapping[bytes, int]`): Bytes that stand for characters without a token.
        merges (`Sequence[tuple[bytes, bytes]]`): In order of rank, those that ever happen, one for each token that merging can make.
        made (`Mapping[bytes, int]`): The id of the token that each of these makes.
        irregular (`Sequence[bytes]`): Tokens of which a part has a higher rank than they have themselves: made out of turn.
        added (`Mapping[str, tuple]`): Added tokens, which are cut out of a text before anything else, and their options.
        cut (`Callable`): The pieces that the tokenizer cuts a text into before merging.
        unproved (`str`): Why the tokens of a text are not those that merging by rank gives, in words; empty if they are.
    """

    kind: str
    content: str
    normalizer: Sequence[dict[str, Any]]
    pre_tokenizer: Sequence[dict[str, Any]]
    tokens: Sequence[bytes | None]
    names: Mapping[str, int]
    letters: Mapping[bytes, int]
    cut: Callable[[str], list[str]]
    fallback: Mapping[bytes, int] = field(default_factory=dict)
    merges: Sequence[Merge] = ()
    made: Mapping[bytes, int] = field(default_factory=dict)
    irregular: Sequence[bytes] = ()
    added: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unproved: str = ""

    @property
    def covers(self) -> bool:
        """Whether it can write every text."""
        return self.letters.keys() | self.fallback.keys() >= _OF_TEXTS


def view_of(tokenizer: Any, told: str = "") -> TokenizerView:
    r"""
    Look at a tokenizer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): One whose tokens' bytes are known.
        told (`str`, *optional*): What its backend tells of itself, if that was asked for already.

    Raises:
        `ValueError`: If they are not.
    """
    tokens, names = token_bytes(tokenizer), tokenizer.get_vocab()
    if not hasattr(tokenizer, "backend_tokenizer"):
        kind = type(tokenizer).__name__
        return TokenizerView(kind, kind, [], [], tokens, names, _characters(tokens, ()), lambda text: [text])
    backend = tokenizer.backend_tokenizer
    parts = json.loads(told or backend.to_str())
    model = parts["model"]
    apart = {token["id"]: token for token in parts["added_tokens"]}
    shared: dict[str, Any] = {
        "content": _content(parts),
        "normalizer": steps(parts["normalizer"], "normalizers"),
        "pre_tokenizer": steps(parts["pre_tokenizer"], "pretokenizers"),
        "tokens": tokens,
        "names": names,
        "cut": _cutter(backend),
        "added": {
            token["content"]: tuple(token[option] for option in ("single_word", "lstrip", "rstrip", "normalized"))
            for token in apart.values()
        },
    }
    if model["type"] != "BPE":
        bytes_of = [i for name, i in names.items() if model.get("byte_fallback") and _FALLBACK.fullmatch(name)]
        return TokenizerView(model["type"], letters=_characters(tokens, bytes_of), **shared)
    text = {name: spelled for name, i in model["vocab"].items() if (spelled := tokens[i]) is not None}
    fallback = {name for name in text if _FALLBACK.fullmatch(name)} if model["byte_fallback"] else set()
    letters = {spelled: names[name] for name, spelled in text.items() if len(name) == 1}
    view = TokenizerView(
        "BPE", letters=letters, fallback={text[name]: names[name] for name in fallback}, **shared
    )  # what has no merges yet
    if affix := model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return replace(view, unproved=f"marks parts of words by {affix!r}")
    firing = _firing(backend.model, model)
    happen = {name: pair for name, pair in firing.items() if {name, *pair[1:]} <= text.keys()}
    regular = {
        name: pair
        for name, pair in happen.items()
        if all(len(part) == 1 or (part in happen and happen[part][0] < pair[0]) for part in pair[1:])
    }
    unproved = ""
    if model["dropout"]:
        unproved = f"leaves merges out at random (a dropout of {model['dropout']})"
    elif len(happen) < len(firing):
        unproved = f"merges into or from {next(name for name in firing if name not in happen)!r}, which is no text"
    elif len({text[name] for name in happen} | letters.keys()) < len(happen) + sum(len(name) == 1 for name in text):
        unproved = "has several tokens of the same bytes"
    elif model["unk_token"] and not view.covers:
        unproved = f"writes {model['unk_token']!r} for what it has no token for"
    ordered = sorted(regular, key=lambda name: regular[name][0])
    return replace(
        view,
        merges=[(text[regular[name][1]], text[regular[name][2]]) for name in ordered],
        made={text[name]: names[name] for name in ordered},
        irregular=[text[name] for name in happen if name not in regular],
        unproved=unproved,
    )


def steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer one after the other, without what only concerns offsets."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for each in part[key] for step in steps(each, key)]
    step = {name: value for name, value in part.items() if name != "trim_offsets"}
    if step.get("use_regex") and not step["add_prefix_space"]:
        return [_GPT2, {**step, "use_regex": False}]  # as others write the same two steps
    return [step]


def _content(told: dict[str, Any]) -> str:
    """All that decides about the tokens of a text, without their ids."""
    model = dict(told["model"])
    vocab = model.pop("vocab")
    names = sorted(vocab) if isinstance(vocab, dict) else sorted(map(tuple, vocab))  # Unigram: (piece, score)
    unknown = model.pop("unk_id", None)  # Unigram's is a place in its list
    added = sorted(
        json.dumps({key: value for key, value in token.items() if key != "id"}, sort_keys=True)
        for token in told["added_tokens"]
    )
    parts = [steps(told["normalizer"], "normalizers"), steps(told["pre_tokenizer"], "pretokenizers"), told["decoder"]]
    return json.dumps([model, names, None if unknown is None else vocab[unknown], added, parts], sort_keys=True)


def _cutter(backend: Any) -> Callable[[str], list[str]]:
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer

    def cut(text: str) -> list[str]:
        text = normalizer.normalize_str(text) if normalizer else text
        return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer else [text]

    return cut


def _characters(tokens: Sequence[bytes | None], last: Iterable[int]) -> dict[bytes, int]:
    """The tokens that are one byte or one character, and their ids; those of `last` only where there is no other."""
    found: dict[bytes, int] = {}
    behind = set(last)
    for i, text in sorted(enumerate(tokens), key=lambda token: token[0] in behind):
        if text and (len(text) == 1 or len(text.decode("utf-8", "replace")) == 1):
            found.setdefault(text, i)
    return found


def _firing(backend: Any, model: dict[str, Any]) -> dict[str, tuple[int, str, str]]:
    """
    For every token that merging makes, the one merge that makes it: its rank and its two parts.

    Merging acts inside a token as if the token's text stood alone, as long as nothing reaches over its ends. So what makes a token in any
    text is what makes it of its own bytes: one merge, however many pairs the list has for it (a list converted from ranks has all pairs). A
    token that its own bytes do not become is never made by merging.
    """
    if model["ignore_merges"] or model["dropout"]:
        backend = models.BPE(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    pairs = defaultdict(list)
    for left, right in ranks:
        pairs[left + right].append((left, right))
    firing = {}
    for name, found in pairs.items():
        if len(backend.tokenize(name)) == 1:
            left, right = found[0] if len(found) == 1 else _last_pair(name, ranks)
            firing[name] = (ranks[left, right], left, right)
    return firing


def _last_pair(name: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str]:
    """The two parts that the letters of a token have become before they become the token."""
    parts, never = list(name), len(ranks)
    while len(parts) > 2:
        ranked = [ranks.get(pair, never) for pair in pairwise(parts)]
        at = ranked.index(min(ranked))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]
