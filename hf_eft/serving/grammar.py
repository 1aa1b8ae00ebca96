"""Answers that are JSON, or JSON of a schema: tokens that would lead elsewhere are ruled out, by `llguidance`."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import torch
from transformers import LogitsProcessor

from ..bytes.tokens import token_bytes

# Of JSON: one space at most between its parts, since a small model that may write any number of them writes nothing else.
JSON_OPTIONS: dict[str, Any] = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
_INSTALL = "pip install 'hf-eft[grammar]'"


class Vocabulary:
    r"""
    The tokens of a tokenizer as `llguidance` reads them, by their bytes.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.

    Raises:
        `NotImplementedError`: If `llguidance` is missing, naming the extra.
        `ValueError`: If the bytes of the tokens are not known.
    """

    def __init__(self, tokenizer: Any) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise NotImplementedError(
                f"`response_format` and called tools need the package `llguidance`: {_INSTALL}"
            ) from error
        self.engine = llguidance
        table = token_bytes(tokenizer)
        # Tokens that are no text have names that begin with a byte that no text has.
        self.tokens = [b"\xff" + str(i).encode() if token is None else token for i, token in enumerate(table)]
        self.special_token_ids = [i for i, token in enumerate(table) if token is None]
        self.bos_token_id = None
        self._ids = {token: i for i, token in enumerate(table) if token}
        self._longest = max(map(len, self._ids))
        self._made: dict[tuple[int, ...], Any] = {}
        self.eos_token_id = 0

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text, the longest first: what `llguidance` takes where the grammar leaves one text only."""
        ids, at = [], 0
        while at < len(text):
            size = next(n for n in range(self._longest, 0, -1) if text[at : at + n] in self._ids)
            ids.append(self._ids[text[at : at + size]])
            at += size
        return ids

    def ending_with(self, ends: Collection[int]) -> Any:
        """`llguidance`'s tokenizer, for texts that one of `ends` ends. Each is made once."""
        key = tuple(sorted(ends))
        if key not in self._made:
            self.eos_token_id = key[0]
            self._made[key] = self.engine.LLTokenizer(self.engine.TokenizerWrapper(self), eos_token=list(key))
        return self._made[key]

    def json(self, schema: dict[str, Any], ends: Collection[int], prompt: int) -> Grammar:
        r"""
        What keeps an answer to a schema.

        Args:
            schema (`dict`): The JSON schema.
            ends (`Collection[int]`): The tokens that end an answer.
            prompt (`int`): How many tokens the prompt has.

        Raises:
            `ValueError`: If the schema is none, or asks for what cannot be kept, saying what.
        """
        options: Any = JSON_OPTIONS
        return self._grammar(
            self.engine.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options), ends, prompt
        )

    def lark(self, grammar: str, ends: Collection[int], prompt: int) -> Grammar:
        """What keeps an answer to a grammar in `llguidance`'s Lark. Arguments and errors are those of `json`."""
        return self._grammar(self.engine.LLMatcher.grammar_from_lark(grammar), ends, prompt)

    def _grammar(self, text: str, ends: Collection[int], prompt: int) -> Grammar:
        tokenizer = self.ending_with(ends)
        wrong, reasons = self.engine.LLMatcher.validate_grammar_with_warnings(text, tokenizer)
        if wrong or reasons:
            raise ValueError(f"The JSON schema cannot be kept to: {reasons[0]}")
        return Grammar(self.engine, tokenizer, text, prompt)


class Grammar(LogitsProcessor):
    r"""
    Rules out the tokens after which no answer could be what the grammar says.

    Contract: stateless but for what it remembers of the tokens that it was shown, which are its only key. It may be used for any number of
    rows, beams, and calls, in any order.

    Args:
        engine (`Any`): The module `llguidance`.
        tokenizer (`Any`): Its tokenizer.
        text (`str`): The grammar.
        prompt (`int`): How many tokens the prompt has.
    """

    supports_continuous_batching = False  # transformers' batches have no history at hand; a server's do

    def __init__(self, engine: Any, tokenizer: Any, text: str, prompt: int) -> None:
        self.engine, self.tokenizer, self.text, self.prompt = engine, tokenizer, text, prompt
        self._known: dict[tuple[int, ...], Any] = {}

    def __deepcopy__(self, memo: Any) -> Grammar:
        return Grammar(self.engine, self.tokenizer, self.text, self.prompt)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        rows = [tuple(said) for said in input_ids[:, self.prompt :].tolist()]
        states = {said: self._after(said) for said in set(rows)}
        allowed = torch.stack([self._allowed(states[said], scores.shape[1]) for said in rows])  # (rows, vocab)
        self._known = states
        masked = scores.masked_fill(~allowed.to(scores.device), -torch.inf)
        if bool((masked == -torch.inf).all(dim=-1).any()):
            raise ValueError(
                "No token is left that `response_format` allows: the members or other options of the request (such as `logit_bias` or "
                "`min_new_tokens`) rule them all out. Leave those out."
            )
        return masked

    def _after(self, said: tuple[int, ...]) -> Any:
        """Where the grammar is after these tokens."""
        before = self._known.get(said[:-1]) if said else None
        if before is None:
            matcher = self.engine.LLMatcher(self.tokenizer, self.text, log_level=0)
            new = list(said)
        else:
            matcher, new = before.deep_copy(), [said[-1]]
        if not matcher.is_stopped():
            matcher.consume_tokens(new)
        return matcher

    def _allowed(self, matcher: Any, size: int) -> torch.Tensor:
        """`(vocab,)`: which tokens may follow; after the end, an end token, whose row takes none."""
        bits = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)[:size] > 0
        return torch.nn.functional.pad(bits, (0, size - bits.shape[0]))
