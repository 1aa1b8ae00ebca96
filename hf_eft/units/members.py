"""The members of a combination in the vocabulary in which they are combined."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..bytes import ByteLevelModel, ByteTokenizer
from ..bytes.tokens import token_bytes
from ..members.adapters import resolve
from ..members.checks import check_model
from ..members.vocabulary import ends_of, width
from ..prompts.pictures import tokenizers_of
from ..recipe.combination import BASE
from ..spelling.model import SpelledModel
from .alphabet import UnitAlphabet
from .beneath import Beneath
from .choice import choose
from .common import CommonUnits, common_units
from .model import TokenLevelModel
from .speaker import unit_tokenizer

VOCABULARIES = ("tokens", "bytes", "auto")


def check_vocabulary(vocabulary: str | None) -> None:
    """Raise a `ValueError` if members cannot be asked for in such a vocabulary."""
    if vocabulary not in (None, *VOCABULARIES):
        raise ValueError(f"`vocabulary` must be {', '.join(map(repr, VOCABULARIES))} or None, got {vocabulary!r}.")


def chosen(vocabulary: str | None, tokenizers: Mapping[str, Any] | None) -> tuple[str | None, CommonUnits | None]:
    r"""
    The vocabulary in which members are combined, and its units, if these were found on the way: `"auto"` is what
    [`~hf_eft.units.choice.choose`] takes.

    Raises:
        `ValueError`: If there is no such vocabulary, or there are no tokenizers to choose by.
    """
    check_vocabulary(vocabulary)
    if vocabulary != "auto":
        return vocabulary, None
    if not tokenizers:
        raise ValueError(
            "`vocabulary='auto'` compares the members' tokenizers: give them, `tokenizers={name: tokenizer, ...}`."
        )
    choice = choose(_base_first(tokenizers_of(tokenizers)))
    return choice.vocabulary, choice.units


def in_vocabulary(
    vocabulary: str | None,
    given: Mapping[str, Any],
    wanted: Collection[str],
    tokenizers: Mapping[str, Any] | None,
    units: CommonUnits | None = None,
) -> tuple[Mapping[str, Any], Beneath | None]:
    r"""
    The members in the vocabulary in which they are to be combined, and what they then are views of: as they are or, for `"tokens"` and
    `"bytes"`, as models of units or bytes; those that share a model and a tokenizer share this view too.

    Args:
        vocabulary (`str`, *optional*): `"tokens"`, `"bytes"`, or `None` for members that share a vocabulary.
        given (`Mapping[str, PreTrainedModel or PeftModel or str]`): The members, as [`~hf_eft.members.members.Members`] takes them.
        wanted (`Collection[str]`): The members that the recipe names.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*): Every member's tokenizer.
        units ([`~hf_eft.units.common.CommonUnits`], *optional*): Their units, if they are known already.

    Raises:
        `ValueError`: If a member has no tokenizer, or one whose tokens' bytes are not known, or is a view of other ids already.
    """
    if vocabulary is None:
        return given, None
    resolved = resolve(given, wanted)
    models = resolved.models
    known = tokenizers_of(tokenizers)
    _check_views(vocabulary, models)
    for name, model in models.items():
        if isinstance(model, SpelledModel):
            continue
        check_model(name, model)
        if name not in known:
            raise ValueError(
                f"`vocabulary={vocabulary!r}` needs the tokenizer of every member, but {name!r} has none: "
                f"`tokenizers={{{name!r}: tokenizer, ...}}`."
            )
    known = _base_first(known)
    if vocabulary == "tokens":
        units = units or common_units(known)  # seconds, for large vocabularies
        views = _read_in_units(models, known, units)
        spellers = dict.fromkeys(known, unit_tokenizer(next(iter(known.values())), units))
    else:
        views, spellers = _read_in_bytes(models, known), spoken(vocabulary, known)
    plain = {name: model.model if isinstance(model, SpelledModel) else model for name, model in models.items()}
    return views, Beneath(vocabulary, plain, resolved.adapted, dict(tokenizers or {}), spellers)


def check_of_one_model(name: str, model: PreTrainedModel, tokenizer: Any) -> None:
    """Raise a `ValueError` if a tokenizer makes tokens of text that a model has none of."""
    last = max((i for i, text in enumerate(token_bytes(tokenizer)) if text is not None), default=0)
    if last >= width(model):
        raise ValueError(
            f"The member {name!r} returns {width(model)} logits, but its tokenizer has tokens up to {last}: they are not of one model."
        )


def _read_in_bytes(models: Mapping[str, PreTrainedModel], known: Mapping[str, Any]) -> dict[str, PreTrainedModel]:
    made: dict[tuple[int, int], SpelledModel] = {}
    for name, model in models.items():
        if not isinstance(model, SpelledModel) and (key := (id(model), id(known[name]))) not in made:
            made[key] = _as_bytes(name, model, known[name])
    return {
        name: model if isinstance(model, SpelledModel) else made[id(model), id(known[name])] for name, model in models.items()
    }


def read_in_units(
    models: Mapping[str, PreTrainedModel], tokenizers: Mapping[str, Any], **limits: Any
) -> dict[str, PreTrainedModel]:
    r"""
    Members whose tokenizers differ, as models over units, tokens of the base. Those that share a model and a tokenizer share the view
    too. A base is returned as it is if all its tokens are units and one ends a text.

    Args:
        models (`Mapping[str, PreTrainedModel]`):
            The members, or some of them: for a logits processor, all but the base, or the base alone.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`):
            The tokenizer of every member, also of those that are not given: units are what they all have. The base is `"base"` or, if
            there is none, the first.
        **limits (*optional*): `covers`, `threshold` and `prompt` of [`~hf_eft.units.TokenLevelModel`].

    Example:

    ```python
    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.units import read_in_units

    >>> base, *_, tokenizer = tiny.load()
    >>> tuned, reference, second = tiny.load_second()
    >>> models = {"base": base, "tuned": tuned, "reference": reference}
    >>> members = read_in_units(models, {"base": tokenizer, "tuned": second, "reference": second}, covers=8)
    >>> model = EFTForCausalLM.from_models(**members)
    ```
    """
    _check_views("tokens", models)
    known = _base_first(tokenizers_of(tokenizers))
    return _read_in_units(models, known, common_units(known), **limits)


def _read_in_units(
    models: Mapping[str, PreTrainedModel], known: Mapping[str, Any], units: CommonUnits, **limits: Any
) -> dict[str, PreTrainedModel]:
    """Views in units of these tokenizers, the base's first."""
    base = next(iter(known))
    alphabet = _alphabet(units, known[base], models.get(base))
    made: dict[tuple[int, int], PreTrainedModel] = {}
    for name, model in models.items():
        key = id(model), id(known[name])
        if name == base and alphabet.is_whole:
            made[key] = model
        elif key not in made:
            made[key] = TokenLevelModel(model, known[name], name, units, alphabet, **limits)
    return {name: made[id(model), id(known[name])] for name, model in models.items()}


def spoken(vocabulary: str | None, tokenizers: Mapping[str, Any]) -> dict[str, Any]:
    """
    The tokenizers that prompts are written with, and that decode what is generated, each with its member's chat template. In units it is
    the base's own, in all of its tokens: the base reads its prompts as it is used to.
    """
    if vocabulary is None:
        return dict(tokenizers)
    known = tokenizers_of(tokenizers)
    if vocabulary == "bytes":
        return {name: ByteTokenizer(each) for name, each in known.items()}
    base = next(iter(_base_first(known).values()))
    return {name: _with_template(base, each) for name, each in known.items()}


def longer_tokens(members: Iterable[PreTrainedModel]) -> torch.Tensor | None:
    """The ids of the base that members in units never write, if there are such members and ids."""
    views = [member for member in members if isinstance(member, TokenLevelModel)]
    return views[0].longer if views and len(views[0].longer) else None


def _base_first(tokenizers: Mapping[str, Any]) -> dict[str, Any]:
    return {**({BASE: tokenizers[BASE]} if BASE in tokenizers else {}), **tokenizers}


def _with_template(speaker: Any, member: Any) -> Any:
    """A tokenizer with the chat template of a member."""
    if speaker.chat_template == member.chat_template:
        return speaker
    speaker = copy.deepcopy(speaker)
    speaker.chat_template = member.chat_template
    return speaker


def _as_bytes(name: str, model: PreTrainedModel, tokenizer: Any) -> SpelledModel:
    try:
        return ByteLevelModel(model, tokenizer)
    except ValueError as error:
        raise ValueError(f"The member {name!r} cannot be read as bytes. {error}") from error


def _alphabet(units: CommonUnits, tokenizer: Any, model: PreTrainedModel | None) -> UnitAlphabet:
    """The ids of the base, whose model a logits processor does not have: it then is as wide as its tokenizer says."""
    wide = max(tokenizer.get_vocab().values()) + 1 if model is None else width(model)
    return UnitAlphabet(units, tokenizer, ends_of(model, tokenizer), wide)


def _check_views(vocabulary: str, models: Mapping[str, PreTrainedModel]) -> None:
    """Raise if a member is a view of other ids than those of this vocabulary."""
    for name, model in models.items():
        if isinstance(model, SpelledModel) and not (vocabulary == "bytes" and isinstance(model, ByteLevelModel)):
            raise ValueError(
                f"The member {name!r} is a {type(model).__name__}, a view, and `vocabulary={vocabulary!r}` makes views of members: give "
                f"`model.model`, what it is a view of. If all members are such views, leave out `vocabulary`."
            )
