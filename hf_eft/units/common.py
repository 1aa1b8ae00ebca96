"""Units: tokens of the base that every member's tokens are made of."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..prompts.pictures import tokenizers_of
from .cutting import Cut, compare_cuts
from .digits import digit_role
from .merges import Merge, TokenizerView, view_of
from .shared import shared_merges
from .spelling import Merging, Speller

_MARKER = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")


@dataclass(frozen=True, eq=False)
class CommonUnits:
    r"""
    Tokens of the first member, the base, and which of them the tokens of every member are made of.

    Attributes:
        ids (`tuple[int, ...]`): The base's id of each unit, ascending.
        texts (`tuple[bytes, ...]`): The bytes of each unit.
        spelled (`Mapping[str, list[tuple[int, ...] | None]]`): By member and its token id, the units (places in `ids`) that the token
            is made of; `None` for special tokens and others that have no counterpart. Members with one tokenizer have one list.
        exact (`bool`): Whether all members, writing the tokens that their tokenizers make of a text in units, write the same units:
            proved, for every text but those that `reason` leaves out.
        reason (`str`): Why, in a sentence.
        kind (`str`): `"same"`, one tokenizer but for its ids; `"contained"`, some member's tokens are the units; `"shared merges"`, the
            members merge alike up to a point; `"digits"`, the same, where members cut digits differently; `"general"`, anything else.
    """

    ids: tuple[int, ...]
    texts: tuple[bytes, ...]
    spelled: Mapping[str, list[tuple[int, ...] | None]]
    exact: bool
    reason: str
    kind: Literal["same", "contained", "shared merges", "digits", "general"]


def common_units(tokenizers: Mapping[str, Any]) -> CommonUnits:
    r"""
    Choose units for members with different tokenizers.

    The units of byte-pair encodings are the tokens of the merges that they share ([`shared_merges`]) and the letters that merging starts
    from. A token is then made of the units that those merges make of its bytes: merging treats a part of a text that nothing reaches out of
    as if it stood alone. That includes tokens which a tokenizer takes whole, without merging (`ignore_merges`): another makes something of
    the same piece of text, which begins with the same shared merges. What is proved so needs the same pieces: the same normalizer (up to
    NFC) and pre-tokenization (up to digits, which then are units one by one, [`compare_cuts`]). Other tokenizers (Unigram, WordPiece) do
    not work by steps that could be shared, unless they are the same up to ids.

    Args:
        tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`): By member; the first is the base, whose ids units have.

    Raises:
        `ValueError`: If the bytes of a member's tokens are not known, naming it, or nothing can be spelled.
    """
    return units_of(views_of(tokenizers))


def views_of(tokenizers: Mapping[str, Any]) -> dict[str, TokenizerView]:
    """
    A view of each member's tokenizer; members with one tokenizer have one view.

    Raises:
        `ValueError`: If the bytes of some members' tokens are not known, with the reason by member.
    """
    known: dict[Any, TokenizerView] = {}
    views, unknown = {}, []
    for name, tokenizer in tokenizers_of(tokenizers).items():
        told = tokenizer.backend_tokenizer.to_str() if hasattr(tokenizer, "backend_tokenizer") else ""
        key = (told or id(tokenizer), *sorted(tokenizer.all_special_ids))
        try:
            if key not in known:
                known[key] = view_of(tokenizer, told)
            views[name] = known[key]
        except ValueError as error:
            unknown.append(f"{name!r}: {error}")
    if unknown:
        raise ValueError(f"The bytes of tokens are not known of all members. {' '.join(unknown)}")
    return views


def units_of(views: Mapping[str, TokenizerView]) -> CommonUnits:
    """[`common_units`] of members whose tokenizers were looked at."""
    distinct = list(dict.fromkeys(views.values()))
    names = [next(name for name, view in views.items() if view is each) for each in distinct]
    if len({view.content for view in distinct}) == 1:
        return _same(views)
    cut = compare_cuts(distinct, names)
    why = _unproved(distinct, names, cut)
    letters = _letters(distinct)
    if cut.kind == "digits":
        merges, made, speller = _shared_beside_digits(distinct, letters)
    else:
        merges = shared_merges(distinct, letters, lambda token: not why or _is_whole(token, distinct))
        made, speller = {left + right for left, right in merges}, lambda places: Speller(places, Merging(letters, merges))
    base = distinct[0]
    units = letters | {text: base.made[text] for text in made}
    units |= {text: base.names[text.decode()] for text in _added_by_all(distinct)}
    ordered = sorted(units.items(), key=lambda unit: unit[1])
    spell = speller({text: k for k, (text, _) in enumerate(ordered)})
    spelled = {view: [spell(text) if text else None for text in view.tokens] for view in distinct}
    for name, view in zip(names, distinct, strict=True):
        if not any(spelled[view]):
            raise ValueError(f"The base {names[0]!r} has no tokens that those of the member {name!r} are made of.")
    kind, reason = _said(spelled, names, cut, why, len(merges))
    return CommonUnits(
        tuple(i for _, i in ordered),
        tuple(text for text, _ in ordered),
        {name: spelled[view] for name, view in views.items()},
        not why,
        reason,
        kind,
    )


def _shared_beside_digits(
    views: Sequence[TokenizerView], letters: Mapping[bytes, int]
) -> tuple[list[Merge], set[bytes], Callable[[Mapping[bytes, int]], Speller]]:
    """
    The merges that members share, the tokens of these that are units, and what spells, where members cut digits differently.

    Pieces without digits are the same to all, so what is shared there is as ever. Pieces of digits are of several in one member and of one
    in another. There only merges within one digit can be units, and tokens that reach across come between these like any other; those of
    whole digits do not, as they begin and end where digits do. A token that is made in both kinds of pieces can only be a unit if it is one
    in both, else its parts are: what all make of the bytes of a text may be made of more units than need be.
    """
    role = functools.cache(digit_role)  # as every token is asked for several times
    elsewhere = shared_merges(views, letters, *[lambda token: not role(token)[1]] * 2)
    within = shared_merges(
        views,
        letters,
        lambda token: role(token)[0] == "within",
        lambda token: role(token)[0] in ("within", "across"),
    )
    others = {left + right for left, right in elsewhere if role(left + right)[0] in ("elsewhere", "never")}
    merging, digits = Merging(letters, elsewhere), Merging(letters, within)
    return (
        elsewhere,
        others | {left + right for left, right in within},
        lambda places: Speller(places, merging, digits, lambda text: role(text)[1]),
    )


def _same(views: Mapping[str, TokenizerView]) -> CommonUnits:
    """Every token is a unit, where only ids differ."""
    base, *_ = views.values()
    names = {name: i for name, i in base.names.items() if base.tokens[i] is not None}
    names = {
        name: i for name, i in names.items() if all(view.tokens[view.names[name]] == base.tokens[i] for view in views.values())
    }
    ordered = sorted(names.items(), key=lambda token: token[1])
    places = {name: k for k, (name, _) in enumerate(ordered)}
    spelled: dict[TokenizerView, list[tuple[int, ...] | None]] = {}
    for view in views.values():
        by_id: dict[int, str] = {i: name for name, i in view.names.items()}
        spelled[view] = [(places[by_id[i]],) if i in by_id and by_id[i] in places else None for i in range(len(view.tokens))]
    return CommonUnits(
        tuple(i for _, i in ordered),
        tuple(base.tokens[i] or b"" for _, i in ordered),
        {name: spelled[view] for name, view in views.items()},
        True,
        f"{_listed(list(views))} have one tokenizer, but for its ids",
        "same",
    )


def _unproved(views: Sequence[TokenizerView], names: Sequence[str], cut: Cut) -> str:
    """Why members need not agree on units, in words; empty if they do."""
    for name, view in zip(names, views, strict=True):
        if view.kind != "BPE":
            return f"the tokenizer of {name!r} ({view.kind}) does not merge by rank"
        if view.unproved:
            return f"the tokenizer of {name!r} {view.unproved}"
    if cut.kind == "several":
        return cut.remark
    base = views[0]
    for name, view in zip(names, views, strict=True):
        alike = (view.letters.keys(), view.fallback.keys()) == (base.letters.keys(), base.fallback.keys())
        if not alike and not (view.covers and base.covers):
            return f"{names[0]!r} and {name!r} know different letters, and have no bytes in their place"
    for name, view in zip(names, views, strict=True):
        for text, options in view.added.items():
            if not _MARKER.fullmatch(text) and any(other.added.get(text) != options for other in views):
                return f"{name!r} cuts out {text!r} before it merges, and others do not"
    return ""


def _letters(views: Sequence[TokenizerView]) -> dict[bytes, int]:
    """The base's ids of bytes, and of characters of several bytes that are units: which all have, or the base has no bytes for."""
    base = views[0]
    single = {text: i for text, i in {**base.fallback, **base.letters}.items() if len(text) == 1}
    multi = {
        text: i
        for text, i in base.letters.items()
        if len(text) > 1 and (all(text in view.letters for view in views) or not all(bytes([b]) in single for b in text))
    }
    return single | multi


def _is_whole(token: bytes, views: Sequence[TokenizerView]) -> bool:
    """Whether no tokenizer cuts the text of a token, standing alone, into pieces."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return False
    return all(len(view.cut(text)) == 1 for view in views)


def _added_by_all(views: Sequence[TokenizerView]) -> list[bytes]:
    """Texts of added tokens that all members cut out alike."""
    first, *others = views
    alike = [text for text, options in first.added.items() if all(view.added.get(text) == options for view in others)]
    return [text.encode() for text in alike if all(view.tokens[view.names[text]] == text.encode() for view in views)]


def _said(
    spelled: Mapping[TokenizerView, Sequence[tuple[int, ...] | None]],
    names: Sequence[str],
    cut: Cut,
    why: str,
    shared: int,
) -> tuple[Literal["contained", "shared merges", "digits", "general"], str]:
    """The kind, and the reason in words."""
    if why:
        return "general", f"units may differ between members: {why}"
    contained = [
        name
        for name, view in zip(names, spelled, strict=True)
        if all(len(spelled[view][i] or ()) == 1 for i in [*view.made.values(), *view.letters.values()])
    ]
    left_out = [cut.remark] if cut.remark else []
    if any(set(view.added) != set(other.added) for view in spelled for other in spelled):
        left_out.append("without the markers that only some have as tokens")
    which = f", in texts {' and '.join(left_out)}" if left_out else ""
    if cut.kind == "digits":
        finer = _listed([names[k] for k in cut.by_one]) or "no member"
        return "digits", (
            f"{_listed(names)} share {shared} merges and cut texts alike but for digits, which {finer} reads one by one, "
            f"as units have them{which}"
        )
    if contained:
        return "contained", f"every token of {_listed(names)} is made of tokens of {contained[0]!r}{which}"
    return "shared merges", f"{_listed(names)} cut texts alike and share {shared} merges{which}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(map(repr, names[:-1])), repr(names[-1])])) if names else ""
