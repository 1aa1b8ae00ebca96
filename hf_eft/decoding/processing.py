"""What writes the members' prompts: tokenizers, and the processors that they are part of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..members.call import refuse_while_running
from ..members.members import Members
from ..members.vocabulary import Vocabulary
from ..prompts.pictures import is_processor, tokenizers_of
from ..units.beneath import Beneath


class EFTProcessingMixin:
    """The part of [`EFTForCausalLM`] that keeps tokenizers and processors."""

    _members: Members
    _held_tokenizers: Mapping[str, Any] | None = None  # processors among them; where these are not those that were compared
    _beneath: Beneath | None = None
    config: Any

    @property
    def vocabulary(self) -> str | None:
        """
        In what the members are combined: `"tokens"`, `"bytes"`, or `None` where they have one tokenizer. Whichever it is, prompts are
        written with a tokenizer of [`EFTForCausalLM.tokenizers`], which decodes what is generated too.
        """
        return None if self._beneath is None else self._beneath.vocabulary

    @property
    def tokenizers(self) -> dict[str, Any]:
        """
        The members' tokenizers, by name, as far as they were given. May be replaced, which compares their contents anew: tokens that one of
        them does not know are never generated. (Those that a folder only holds are not compared.) In place of a tokenizer may be given the
        processor that it is part of.

        With a [`EFTForCausalLM.vocabulary`], these are what prompts are written with and what is generated is decoded by: the base's
        tokenizer or the byte tokenizer, under each member's name with that member's chat template. They then cannot be replaced.
        """
        return tokenizers_of(self._reads)

    @tokenizers.setter
    def tokenizers(self, tokenizers: Mapping[str, Any]) -> None:
        refuse_while_running(self, "`tokenizers`")
        if self.vocabulary is not None:
            raise ValueError(
                f"The members are combined with `vocabulary={self.vocabulary!r}`, which is made of their tokenizers: combine anew to "
                "replace one, `EFTForCausalLM.from_models(..., tokenizers=...)`."
            )
        self._members.vocabulary = Vocabulary(self._members.vocabulary.widths, tokenizers)
        self._held_tokenizers = dict(tokenizers)
        self.config.tokenizer_members = list(tokenizers)

    @property
    def processors(self) -> dict[str, Any]:
        """The processors of members that see, by name: those that were given, or lay beside the members, in place of their tokenizers."""
        return {name: each for name, each in self._reads.items() if is_processor(each)}

    @property
    def _spellers(self) -> Mapping[str, Any]:
        """By member, what cuts a text into the tokens that the combination writes."""
        return self.tokenizers if self._beneath is None else self._beneath.spellers

    @property
    def _speller(self) -> Any:
        """What cuts a text that is to be scored; `None` where the tokenizer that prompts are written with does."""
        return next(iter(self._spellers.values())) if self.vocabulary == "tokens" else None

    @property
    def _reads(self) -> Mapping[str, Any]:
        """What writes each member's prompts, by name: its processor, or its tokenizer."""
        return self._members.vocabulary.tokenizers if self._held_tokenizers is None else self._held_tokenizers
