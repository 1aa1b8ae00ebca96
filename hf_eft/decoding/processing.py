"""What writes the members' prompts: tokenizers, and the processors that they are part of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..members.call import refuse_while_running
from ..members.members import Members
from ..members.vocabulary import Vocabulary
from ..prompts.pictures import is_processor, tokenizers_of


class EFTProcessingMixin:
    """The part of [`EFTForCausalLM`] that keeps tokenizers and processors."""

    _members: Members
    _held_tokenizers: Mapping[str, Any] | None = None  # processors among them; where these are not those that were compared
    config: Any

    @property
    def tokenizers(self) -> dict[str, Any]:
        """
        The members' tokenizers, by name, as far as they were given. May be replaced, which compares their contents anew: tokens that one of
        them does not know are never generated. (Those that a folder only holds are not compared.) In place of a tokenizer may be given the
        processor that it is part of.
        """
        return tokenizers_of(self._reads)

    @tokenizers.setter
    def tokenizers(self, tokenizers: Mapping[str, Any]) -> None:
        refuse_while_running(self, "`tokenizers`")
        self._members.vocabulary = Vocabulary(self._members.vocabulary.widths, tokenizers)
        self._held_tokenizers = dict(tokenizers)
        self.config.tokenizer_members = list(tokenizers)

    @property
    def processors(self) -> dict[str, Any]:
        """The processors of members that see, by name: those that were given, or lay beside the members, in place of their tokenizers."""
        return {name: each for name, each in self._reads.items() if is_processor(each)}

    @property
    def _reads(self) -> Mapping[str, Any]:
        """What writes each member's prompts, by name: its processor, or its tokenizer."""
        return self._members.vocabulary.tokenizers if self._held_tokenizers is None else self._held_tokenizers
