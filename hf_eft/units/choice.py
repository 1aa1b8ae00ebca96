"""In which vocabulary members are combined: their own, the base's tokens for all, or bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..members.vocabulary import check_tokenizers
from ..prompts.pictures import tokenizers_of
from .common import CommonUnits, common_units, units_of, views_of


@dataclass(frozen=True)
class Choice:
    r"""
    What `vocabulary="auto"` takes.

    Attributes:
        vocabulary (`str`, *optional*):
            `None` for members with one tokenizer, special tokens that only some know aside; `"tokens"` where all members agree on
            units, else `"bytes"`.
        reason (`str`): Why, for a person.
        units (`CommonUnits`, *optional*): The units, where there are any; they need not be those of the choice.
    """

    vocabulary: Literal["tokens", "bytes"] | None
    reason: str
    units: CommonUnits | None = None


def choose(tokenizers: Mapping[str, Any]) -> Choice:
    r"""
    Choose how members are combined, from their tokenizers alone.

    Args:
        tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`): By member; the first is the base.

    Raises:
        `ValueError`: If they cannot be combined in any way, with the reason by member.

    Example:

    ```python
    >>> from transformers import AutoTokenizer

    >>> from hf_eft import tiny
    >>> from hf_eft.units import choose

    >>> members = {"base": "base", "tuned": "second_tuned"}
    >>> choose({name: AutoTokenizer.from_pretrained(tiny.path(member)) for name, member in members.items()}).vocabulary
    'bytes'
    ```
    """
    tokenizers = tokenizers_of(tokenizers)
    if not tokenizers:
        raise ValueError(
            "Nothing can be chosen without tokenizers, got none: give each member's, `tokenizers={name: tokenizer, ...}`."
        )
    if _one_id_for_each(tokenizers):
        proved = None if _know_alike(tokenizers) else _proved_units(tokenizers)
        if proved is not None:
            return Choice("tokens", proved.reason, proved)
        return Choice(None, f"{' and '.join(map(repr, tokenizers))} give every token one id")
    try:
        views = views_of(tokenizers)
    except ValueError as error:
        raise ValueError(
            f"The members' tokenizers differ, and they can be combined neither by tokens nor byte by byte. {error} Use members of one "
            "model family, or give `ByteLevelModel(..., token_bytes=...)` as a member."
        ) from error
    try:
        units = units_of(views)
    except ValueError as error:
        return Choice("bytes", str(error))
    return Choice("tokens" if units.exact else "bytes", units.reason, units)


def _one_id_for_each(tokenizers: Mapping[str, Any]) -> bool:
    try:
        check_tokenizers(tokenizers)
    except ValueError:
        return False
    return True


def _know_alike(tokenizers: Mapping[str, Any]) -> bool:
    """
    Whether all know the same tokens of texts. If not, one cuts a prompt into tokens that another has never read, though no id is another's:
    added tokens that only some know do not matter, as texts are cut into them only where they are spelled out. (Those of mistral-common
    list none.)
    """
    added = {str(token) for each in tokenizers.values() for token in getattr(each, "added_tokens_decoder", {}).values()}
    first, *others = (each.get_vocab().keys() - added for each in tokenizers.values())
    return all(other == first for other in others)


def _proved_units(tokenizers: Mapping[str, Any]) -> CommonUnits | None:
    try:
        units = common_units(tokenizers)
    except ValueError:
        return None
    return units if units.exact else None
