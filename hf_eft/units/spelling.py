"""Which units a token is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from tokenizers import models

from .merges import Merge

_BYTES = {0xDC80 + k: chr(0x10F080 + k) for k in range(0x80)}  # bytes that are no character: letters that no text has


class Merging:
    """
    The BPE of some merges over bytes, and over characters where these are letters.

    Args:
        letters (`Collection[bytes]`): Single bytes and characters of several.
        merges (`Sequence[tuple[bytes, bytes]]`): In order.
    """

    def __init__(self, letters: Collection[bytes], merges: Sequence[Merge]) -> None:
        self._characters = {text.decode() for text in letters if len(text) > 1}
        self._texts = [*letters, *(left + right for left, right in merges)]
        vocab = {self._name(text): k for k, text in enumerate(self._texts)}
        self._model = models.BPE(vocab=vocab, merges=[(self._name(left), self._name(right)) for left, right in merges])

    def _name(self, text: bytes) -> str:
        """A letter for each character that is a letter here, and for each byte of all others."""
        if text.isascii():
            return text.decode()
        return "".join(
            letter
            if letter in self._characters
            else letter.encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape")
            for letter in text.decode("utf-8", "surrogateescape")
        ).translate(_BYTES)

    def __call__(self, text: bytes) -> list[bytes] | None:
        """What the bytes of a token become; `None` if there is not a letter for all of them."""
        name = self._name(text)
        made = self._model.tokenize(name)
        if sum(len(token.value) for token in made) < len(name):  # what is no letter is left out without a word
            return None
        return [self._texts[token.id] for token in made]


class Speller:
    r"""
    The units of tokens.

    Args:
        places (`Mapping[bytes, int]`): The place of each unit.
        merging (`Merging`): The shared merges.
        digits (`Merging`, *optional*): Those of pieces of digits, where these are others, with `has_digit`.
        has_digit (`Callable`): Whether a token can be part of such pieces alone.
    """

    def __init__(
        self,
        places: Mapping[bytes, int],
        merging: Merging,
        digits: Merging | None = None,
        has_digit: Callable[[bytes], bool] = lambda text: False,
    ) -> None:
        self._places = places
        self._merging = merging
        self._digits = digits
        self._has_digit = has_digit

    def __call__(self, text: bytes) -> tuple[int, ...] | None:
        """The places of the units that a token is made of; `None` for what has no units."""
        if text in self._places:
            return (self._places[text],)
        merging = self._digits if self._digits is not None and self._has_digit(text) else self._merging
        made = merging(text)
        if made is None:
            return None
        places: list[int] = []
        for part in made:
            # A token that is no unit although all make it: pieces of digits may be made otherwise.
            units = [part] if part in self._places or self._digits is None else self._digits(part)
            places += [self._places[unit] for unit in units or ()]
        return tuple(places)
