"""Grammars over the tokens of a tokenizer, compiled by `llguidance`."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..bytes.tokens import token_bytes as bytes_of
from .calls import JSON_OPTIONS, forced_call

_INSTALL = "pip install 'hf-eft[grammar]'"
# Where one text only is left, `llguidance` would have it in the tokens that it takes for the usual ones, and rule out all others.
_EVERY_TOKEN = '\n%llguidance {"no_forcing": true}\n'


class Grammars:
    r"""
    The tokens of a tokenizer, read once, and grammars over them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the members.
        ends (`int` or `Collection[int]`, *optional*):
            The tokens that end an answer, which `generate` must end at too. Defaults to the tokenizer's `eos_token_id`. Of a model that
            ends with several, `model.generation_config.eos_token_id`.
        token_bytes (`Sequence[bytes | None]`, *optional*): The bytes of each token, where they are not known of the tokenizer.

    Raises:
        `NotImplementedError`: If `llguidance` is missing, naming the extra.
        `ValueError`: If the bytes of the tokens are not known, or no token ends an answer.

    Example:

    ```python
    >>> import torch
    >>> from hf_eft import EFTForCausalLM, tiny
    >>> from hf_eft.grammar import GrammarLogitsProcessor, Grammars

    >>> base, tuned, reference, tokenizer = tiny.load()
    >>> model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference)
    >>> inputs = tokenizer(tiny.questions()[0].prompt, return_tensors="pt", return_token_type_ids=False)
    >>> schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"], "additionalProperties": False}
    >>> keeps = GrammarLogitsProcessor(Grammars(tokenizer).json(schema), inputs["input_ids"])
    >>> ids = model.generate(**inputs, logits_processor=[keeps], max_new_tokens=24)
    >>> tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    '{ "sure":true }'
    ```
    """

    def __init__(
        self,
        tokenizer: Any,
        ends: int | Collection[int] | None = None,
        token_bytes: Sequence[bytes | None] | None = None,
    ) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise NotImplementedError(
                f"`response_format`, called tools and grammars need the package `llguidance`: {_INSTALL}"
            ) from error
        self.tokenizer, self.engine = tokenizer, llguidance
        self._tokens = _Tokens(bytes_of(tokenizer) if token_bytes is None else token_bytes)
        self._ends = self._ends_of(ends)
        self._made: dict[tuple[int, ...], Any] = {}

    def ending_with(self, ends: int | Collection[int]) -> Grammars:
        """The same tokens, for answers that `ends` end: one of them, or several."""
        other = copy.copy(self)
        other._ends = self._ends_of(ends)
        return other

    def _ends_of(self, ends: int | Collection[int] | None) -> tuple[int, ...]:
        given = self.tokenizer.eos_token_id if ends is None else ends
        known = tuple(sorted({given} if isinstance(given, int) else set(given or ())))
        if not known:
            raise ValueError(
                "`response_format` and grammars need a token that ends an answer: neither the model nor the tokenizer names one. Give "
                "`ends`."
            )
        if not 0 <= known[0] <= known[-1] < len(self._tokens.tokens):
            raise ValueError(f"`ends` must be ids of the tokenizer, 0 to {len(self._tokens.tokens) - 1}, got {list(known)}.")
        return known

    def json(self, schema: Mapping[str, Any] | str) -> Grammar:
        r"""
        What keeps an answer to JSON of a schema, with at most one space between its parts: a small model that may write any number of
        them writes nothing else.

        Args:
            schema (`Mapping` or `str`): The JSON schema.

        Raises:
            `ValueError`: If the schema is none, or asks for what cannot be kept, saying what.
        """
        try:
            read = json.loads(schema) if isinstance(schema, str) else schema
            if not isinstance(read, Mapping):
                raise ValueError(f"it must be an object, got {read!r:.100}")
            options = {**read.get("x-guidance", {}), **JSON_OPTIONS}
        except (ValueError, TypeError) as error:
            raise ValueError(f"The JSON schema cannot be kept to: {error}.") from None
        return self._grammar(f"start: %json {json.dumps({**read, 'x-guidance': options})}", "JSON schema")

    def regex(self, pattern: str) -> Grammar:
        r"""
        What has the whole answer match a regular expression, in the syntax of Rust's `regex`: without look-around (`(?=...)`), references
        back and anchors. `.` is every character but a line's end.

        Args:
            pattern (`str`): The expression.

        Raises:
            `ValueError`: If it is none.
        """
        written = json.loads(self.engine.LLMatcher.grammar_from_regex(pattern))
        return self._grammar(written["grammars"][0]["lark_grammar"], "regular expression")

    def lark(self, grammar: str) -> Grammar:
        """What keeps an answer to a grammar in `llguidance`'s Lark, whose first rule is `start`. Errors are those of `json`."""
        return self._grammar(grammar, "Lark grammar")

    def call(self, tools: Sequence[Mapping[str, Any]], template: Mapping[str, Any] | None) -> Grammar:
        r"""
        What has an answer be one call of one of some tools, as the tuned member's family writes it.

        Args:
            tools (`Sequence[dict]`): As chat templates read them: `{"type": "function", "function": {"name": ..., "parameters": ...}}`.
            template (`dict`, *optional*): How its calls are written, see [`~hf_eft.grammar.calls.response_format`].

        Raises:
            `NotImplementedError`: If calls of this format are not JSON between two marks, or there is no format.
            `ValueError`: If a schema cannot be kept to.
        """
        return self.lark(forced_call(template, tools))

    def _grammar(self, lark: str, kind: str) -> Grammar:
        text = self.engine.LLMatcher.grammar_from_lark(lark + _EVERY_TOKEN)
        if self._ends not in self._made:
            self._made[self._ends] = self._tokens.made(self.engine, self._ends)
        tokenizer = self._made[self._ends]
        wrong, reasons = self.engine.LLMatcher.validate_grammar_with_warnings(text, tokenizer)
        if wrong or reasons:
            raise ValueError(f"The {kind} cannot be kept to: {reasons[0]}")
        return Grammar(self.engine, tokenizer, text, self._tokens, self._ends)


class Grammar:
    r"""
    What an answer may be. Made by [`Grammars`], kept to by [`GrammarLogitsProcessor`].

    Args:
        engine (`Any`): The module `llguidance`.
        tokenizer (`Any`): Its tokenizer.
        text (`str`): The grammar, as it reads it.
        tokens (`Any`): The bytes of the tokens.
        ends (`tuple[int, ...]`): The tokens that end an answer.
    """

    def __init__(self, engine: Any, tokenizer: Any, text: str, tokens: _Tokens, ends: tuple[int, ...]) -> None:
        self.engine, self.tokenizer, self.text, self.ends = engine, tokenizer, text, ends
        self._tokens = tokens

    def __deepcopy__(self, memo: Any) -> Grammar:
        return self  # nothing of it changes

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self._tokens.tokens)

    def is_text(self, token: int) -> bool:
        """Whether a token is a part of texts, and not a special one."""
        return 0 <= token < self.size and token not in self._tokens.special

    def begun(self) -> Any:
        """`llguidance`'s matcher, at the beginning of an answer."""
        return self.engine.LLMatcher(self.tokenizer, self.text, log_level=0)


class _Tokens:
    """Tokens as `llguidance` reads them, by their bytes."""

    def __init__(self, table: Sequence[bytes | None]) -> None:
        # Tokens that are no text have names that begin with a byte that no text has.
        self.tokens = [b"\xff" + str(i).encode() if token is None else token for i, token in enumerate(table)]
        self.special_token_ids = [i for i, token in enumerate(table) if token is None]
        self.special = frozenset(self.special_token_ids)
        self.bos_token_id = None
        self.eos_token_id = 0
        self._ids = {token: i for i, token in enumerate(table) if token}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text, the longest first: what `llguidance` asks of a tokenizer, and no answer depends on."""
        text = text.encode() if isinstance(text, str) else text  # it tries which of them is taken with a text of its own
        ids, at = [], 0
        while at < len(text):
            size = next((n for n in range(self._longest, 0, -1) if text[at : at + n] in self._ids), 0)
            if not size:
                raise ValueError(f"No token begins with {text[at : at + 1]!r}.")
            ids.append(self._ids[text[at : at + size]])
            at += size
        return ids

    def made(self, engine: Any, ends: tuple[int, ...]) -> Any:
        """`llguidance`'s tokenizer, for texts that one of `ends` ends."""
        self.eos_token_id = ends[0]
        return engine.LLTokenizer(engine.TokenizerWrapper(self), eos_token=list(ends))
