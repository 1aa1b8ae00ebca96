"""Answers that keep to a grammar: JSON of a schema, a regular expression, a call of a tool; thinking first, if wanted."""

from .grammars import Grammar, Grammars
from .processor import GrammarLogitsProcessor
from .thinking import Thinking

__all__ = ["Grammar", "GrammarLogitsProcessor", "Grammars", "Thinking"]
