"""Grammars in a call of `generate`: what is asked of it for their sake, and a last look at the answers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessorList

from ..grammar import GrammarLogitsProcessor
from ..members.vocabulary import end_tokens

_Way = Callable[..., Any]


def keeps_grammars(way: _Way) -> _Way:
    r"""
    Have a way of decoding keep to the grammars among its processors.

    Whether a token is left is looked at by the way itself, which knows what rows are drafted, dropped or over. Every answer is looked at
    again when it is there: what other processors force, or a search fills up, does not pass for one.

    Raises:
        `ValueError`: If an answer would not end where its grammar does, an assistant reads other tokens, or an answer is not kept to.
    """

    @functools.wraps(way)
    def kept(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        processors, config = kwargs["logits_processor"], kwargs["generation_config"]
        grammars = [each for each in processors if isinstance(each, GrammarLogitsProcessor)]
        if not grammars:
            return way(self, input_ids, **kwargs)
        for each in grammars:
            _check_call(each, config, kwargs)
        judged = LogitsProcessorList(each.judged() if each in grammars else each for each in processors)
        made = way(self, input_ids, **{**kwargs, "logits_processor": judged})
        pad = config._pad_token_tensor
        for each in grammars:
            each.check(made if isinstance(made, torch.Tensor) else made.sequences, None if pad is None else int(pad))
        return made

    return kept


def _check_call(grammar: GrammarLogitsProcessor, config: Any, options: dict[str, Any]) -> None:
    ends = {end for each in grammar.grammars for end in each.ends}
    if others := sorted(ends - set(end_tokens(config))):
        raise ValueError(
            f"The grammar ends an answer with the tokens {sorted(ends)}, and `generate` does not end at {others}: it has `eos_token_id="
            f"{config.eos_token_id!r}`. Give both the same: `Grammars(tokenizer, ends=model.generation_config.eos_token_id)`."
        )
    if "assistant_tokenizer" in options:
        raise ValueError(
            "An assistant with another tokenizer cannot draft for a grammar, which is one of this tokenizer's tokens: leave "
            "`assistant_tokenizer` out, and let a member, a model with the same tokenizer or the prompt draft."
        )
