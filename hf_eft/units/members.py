"""The members of a combination in the vocabulary in which they are combined."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from transformers import PreTrainedModel

from ..bytes import ByteLevelModel, ByteTokenizer
from ..members.adapters import resolve
from ..members.checks import check_model
from ..members.vocabulary import end_tokens, width
from ..prompts.pictures import tokenizers_of
from ..spelling.model import SpelledModel
from .alphabet import UnitAlphabet
from .choice import choose
from .common import common_units
from .model import TokenLevelModel

VOCABULARIES = ("tokens", "bytes", "auto")

View = Callable[[str, PreTrainedModel, Any], PreTrainedModel]


def chosen(vocabulary: str | None, tokenizers: Mapping[str, Any] | None) -> str | None:
    r"""
    The vocabulary in which members are combined: `"auto"` is what [`~hf_eft.units.choice.choose`] takes.

    Raises:
        `ValueError`: If there is no such vocabulary, or there are no tokenizers to choose by.
    """
    if vocabulary is not None and vocabulary not in VOCABULARIES:
        raise ValueError(f"`vocabulary` must be {', '.join(map(repr, VOCABULARIES))} or None, got {vocabulary!r}.")
    if vocabulary != "auto":
        return vocabulary
    if not tokenizers:
        raise ValueError("`vocabulary='auto'` compares the members' tokenizers: give them, `tokenizers={name: tokenizer, ...}`.")
    return choose(tokenizers_of(tokenizers)).vocabulary


def in_vocabulary(
    vocabulary: str | None, given: Mapping[str, Any], wanted: Collection[str], tokenizers: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    r"""
    The members in the vocabulary in which they are to be combined: as they are or, for `"tokens"` and `"bytes"`, as models of units or bytes;
    those that share a model and a tokenizer share this view too.

    Args:
        vocabulary (`str`, *optional*): `"tokens"`, `"bytes"`, or `None` for members that share a vocabulary.
        given (`Mapping[str, PreTrainedModel or PeftModel or str]`): The members, as [`~hf_eft.members.members.Members`] takes them.
        wanted (`Collection[str]`): The members that the recipe names.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*): Every member's tokenizer.

    Raises:
        `ValueError`: If a member has no tokenizer, or one whose tokens' bytes are not known.
    """
    if vocabulary is None:
        return given
    models = resolve(given, wanted).models
    known = tokenizers_of(tokenizers)
    for name, model in models.items():
        if isinstance(model, SpelledModel):
            continue
        check_model(name, model)
        if name not in known:
            raise ValueError(
                f"`vocabulary={vocabulary!r}` needs the tokenizer of every member, but {name!r} has none: "
                f"`tokenizers={{{name!r}: tokenizer, ...}}`."
            )
    view = _as_bytes if vocabulary == "bytes" else _as_units(models, known)
    made: dict[tuple[int, int], PreTrainedModel] = {}
    for name, model in models.items():
        if not isinstance(model, SpelledModel) and (key := (id(model), id(known[name]))) not in made:
            made[key] = view(name, model, known[name])
    return {
        name: model if isinstance(model, SpelledModel) else made[id(model), id(known[name])] for name, model in models.items()
    }


def spoken(vocabulary: str | None, tokenizers: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizers of what members read and write: what spells the markers of phases, and writes chats in their templates."""
    if vocabulary is None:
        return dict(tokenizers)
    known = tokenizers_of(tokenizers)
    if vocabulary == "bytes":
        return {name: ByteTokenizer(each) for name, each in known.items()}
    return dict.fromkeys(known, next(iter(known.values())))


def _as_bytes(name: str, model: PreTrainedModel, tokenizer: Any) -> SpelledModel:
    try:
        return ByteLevelModel(model, tokenizer)
    except ValueError as error:
        raise ValueError(f"The member {name!r} cannot be read as bytes. {error}") from error


def _as_units(models: Mapping[str, PreTrainedModel], tokenizers: Mapping[str, Any]) -> View:
    """Views of members in units of the base, which is the first; it needs none if all its tokens are units."""
    units = common_units({name: tokenizers[name] for name in models})
    main, model = next(iter(models.items()))
    base = tokenizers[main]
    ends = end_tokens(model.generation_config) or [i for i in [base.eos_token_id] if i is not None]
    alphabet = UnitAlphabet(units, base, ends, width(model))
    if alphabet.is_whole:
        return lambda name, model, tokenizer: (
            model if name == main else TokenLevelModel(model, tokenizer, name, units, alphabet)
        )
    return lambda name, model, tokenizer: TokenLevelModel(model, tokenizer, name, units, alphabet)
