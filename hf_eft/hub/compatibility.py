"""Do these models go together? Answered from configurations and tokenizers, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..members.auto import auto_class
from ..members.vocabulary import Vocabulary, end_tokens
from ..units import Choice, choose
from ..units.members import check_vocabulary

Level = Literal["ok", "note", "refused"]
_BY = {"tokens": "by tokens", "bytes": "byte by byte, at a cost"}
_SHOWN = 5  # tokens that only some members know


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is in order, worth knowing, or will be refused."""

    subject: str
    level: Level
    text: str


@dataclass(frozen=True)
class _Card:
    """What is known of a member without its weights."""

    config: Any
    tokenizer: Any
    generation: Any


def check_members(members: Mapping[str, str], vocabulary: str | None = None) -> list[Finding]:
    r"""
    Look at configurations and tokenizers of the members of a combination.

    Args:
        members (`Mapping[str, str]`): By member, in order, a folder or an id on the Hub. Nothing of it is executed.
        vocabulary (`str`, *optional*):
            `"tokens"`, `"bytes"` or `"auto"`, in which members with different tokenizers are to be combined. Without, they are refused.

    Returns:
        `list[Finding]`: Vocabularies, special tokens, chat templates, context lengths, dtypes, memory. What is `"refused"` is an error.

    Raises:
        `ValueError`: If there is no such vocabulary.
    """
    check_vocabulary(vocabulary)
    findings: list[Finding] = []
    cards = {}
    for name, where in members.items():
        try:
            cards[name] = _read(where)
        except (OSError, ValueError) as error:
            findings.append(Finding(name, "refused", f"cannot be read from {where}: {str(error).strip().splitlines()[0]}"))
            continue
        findings += _model(name, where, cards[name])
    if len(cards) < len(members):
        return findings
    findings += _vocabularies(cards, vocabulary)
    findings += _ends(cards)
    findings += _templates(cards)
    findings += _numbers(cards)
    return findings


def _read(where: str) -> _Card:
    config = AutoConfig.from_pretrained(where)
    try:
        generation = GenerationConfig.from_pretrained(where)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    return _Card(config, AutoTokenizer.from_pretrained(where), generation)


def _model(name: str, where: str, card: _Card) -> list[Finding]:
    kind = card.config.model_type
    if getattr(card.config, "is_encoder_decoder", False):
        return [Finding(name, "refused", f"{kind} is an encoder-decoder; members are decoder-only language models")]
    if type(card.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [Finding(name, "refused", f"{kind} has no language modeling head in transformers")]
    if Path(where).is_dir() and not any(Path(where).glob("*.safetensors")):
        return [Finding(name, "refused", f"{where} has no safetensors file; pickled weights are not read")]
    return [Finding(name, "ok", f"{kind}, {_size(_parameters(card.config))} parameters")]


def _vocabularies(cards: Mapping[str, _Card], vocabulary: str | None) -> list[Finding]:
    widths = {name: int(card.config.get_text_config(decoder=True).vocab_size) for name, card in cards.items()}
    tokenizers = {name: card.tokenizer for name, card in cards.items()}
    try:
        Vocabulary(widths, tokenizers)
    except ValueError as error:
        return _differing(tokenizers, vocabulary, str(error))
    found = [Finding("vocabulary", "ok", "every token has one id; " + _listed(widths, "rows in the embedding table"))]
    if (choice := choose(tokenizers)).vocabulary is not None:  # texts are not cut alike
        if vocabulary is not None:
            return [_combined(choice, vocabulary)]
        found.append(_another(choice))
    known = {name: set(tokenizer.get_vocab()) for name, tokenizer in tokenizers.items()}
    for name, tokens in known.items():
        others = [other for other in known if known[other] < tokens | known[other] and tokens - known[other]]
        if others:
            only = sorted(tokens - set.intersection(*(known[other] for other in others)))
            shown = ", ".join(map(repr, only[:_SHOWN])) + (", ..." if len(only) > _SHOWN else "")
            found.append(
                Finding(
                    "vocabulary",
                    "note",
                    f"{name} knows {len(only)} tokens that {', '.join(others)} do not ({shown}): never generated",
                )
            )
    return found


def _differing(tokenizers: Mapping[str, Any], vocabulary: str | None, problem: str) -> list[Finding]:
    """Of members some of whose tokens have several ids: whether and how they can be combined."""
    refused = [Finding("vocabulary", "refused", problem)] if vocabulary is None else []
    try:
        choice = choose(tokenizers)
    except ValueError as error:
        return [*refused, Finding("tokenizers" if refused else "vocabulary", "refused", str(error))]
    return [*refused, _another(choice) if vocabulary is None else _combined(choice, vocabulary)]


def _combined(choice: Choice, vocabulary: str) -> Finding:
    """Whether members whose tokens differ can be combined in the vocabulary that is asked for, and what becomes of them."""
    if vocabulary == "tokens" and choice.units is None:
        return Finding("vocabulary", "refused", f"members' tokenizers differ, and have no units in common: {choice.reason}")
    taken = choice.vocabulary if vocabulary == "auto" else vocabulary
    text = f"members' tokenizers differ, and are combined {_BY[str(taken)]}: {choice.reason}"
    return Finding("vocabulary", "ok" if taken in (choice.vocabulary, "bytes") else "note", text)


def _another(choice: Choice) -> Finding:
    """How members whose tokens differ can be combined."""
    by = _BY[str(choice.vocabulary)]
    text = (
        f"members' tokenizers differ; `from_models(..., tokenizers=..., vocabulary='auto')` combines them {by}: {choice.reason}"
    )
    return Finding("tokenizers", "note", text)


def _ends(cards: Mapping[str, _Card]) -> list[Finding]:
    ends = {name: sorted(end_tokens(card.generation)) for name, card in cards.items()}
    found = [Finding("end of text", "ok" if len({tuple(e) for e in ends.values()}) == 1 else "note", _listed(ends, "ids"))]
    tuned = [name for name in cards if name not in ("base", "reference")]
    name = tuned[0] if len(tuned) == 1 else next(iter(cards))
    widths = {n: int(card.config.get_text_config(decoder=True).vocab_size) for n, card in cards.items()}
    found.append(_end(widths, {n: card.tokenizer for n, card in cards.items()}, ends[name], name))
    if unpadded := [n for n, card in cards.items() if card.tokenizer.pad_token_id is None]:
        found.append(Finding("padding", "note", f"{', '.join(unpadded)} have no padding token: set one for batches"))
    return found


def _end(widths: Mapping[str, int], tokenizers: Mapping[str, Any], ends: list[int], name: str) -> Finding:
    """Whether a combination of members can end as one of them does."""
    try:
        vocabulary = Vocabulary(widths, tokenizers)
    except ValueError:  # which is told where vocabularies are
        return Finding("end of text", "note", "where tokenizers differ, whatever ends a member's text is one end to all")
    try:
        vocabulary.check_end(ends, name)
    except ValueError as error:
        return Finding("end of text", "refused", str(error))
    return Finding("end of text", "ok", f"a combination ends as {name} does, whose generation defaults it takes")


def _templates(cards: Mapping[str, _Card]) -> list[Finding]:
    templates = {name: getattr(card.tokenizer, "chat_template", None) for name, card in cards.items()}
    have = [name for name, template in templates.items() if template]
    if not have:
        return [Finding("chat template", "note", "no member has one: prompts are plain text")]
    if len(set(templates.values())) == 1:
        return [Finding("chat template", "ok", "the same for all members")]
    text = (
        f"members differ (there is one in {', '.join(have)}): either all read the prompt that one template makes, or each its own "
        "(`hf_eft.prompts.member_inputs` and `generate(member_inputs=...)`)"
    )
    return [Finding("chat template", "note", text)]


def _numbers(cards: Mapping[str, _Card]) -> list[Finding]:
    found = []
    contexts = {
        name: getattr(card.config.get_text_config(decoder=True), "max_position_embeddings", None)
        for name, card in cards.items()
    }
    if any(contexts.values()):
        shortest = min(value for value in contexts.values() if value)
        same = len(set(contexts.values())) == 1
        found.append(
            Finding("context", "ok" if same else "note", f"{shortest} tokens together; " + _listed(contexts, "tokens"))
        )
    dtypes = {name: _dtype(card.config) for name, card in cards.items()}
    named = {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()}
    found.append(
        Finding("dtype", "ok" if len(set(named.values())) == 1 else "note", _listed(named, "") + "; combined in float32")
    )
    weights = {name: _parameters(card.config) * dtypes[name].itemsize for name, card in cards.items()}
    caches = {name: _cache_bytes(card.config) * dtypes[name].itemsize for name, card in cards.items()}
    text = f"weights {_size(sum(weights.values()), 'B')}; cache {_size(sum(caches.values()), 'B')} for each token and row"
    found.append(Finding("memory", "ok", text))
    return found


def _parameters(config: Any) -> int:
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    return int(sum(parameter.numel() for parameter in model.parameters()))


def _dtype(config: Any) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _cache_bytes(config: Any) -> int:
    """Numbers in the cache for each token: keys and values of every layer with attention."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 0)
    size = getattr(text, "head_dim", None) or text.hidden_size // max(1, getattr(text, "num_attention_heads", 1))
    return 2 * text.num_hidden_layers * heads * size


def _listed(values: Mapping[str, Any], unit: str) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) + (f" {unit}" if unit else "")


def _size(number: float, unit: str = "") -> str:
    """`3.2 G`: three digits and a prefix."""
    prefixes = ["", "k", "M", "G", "T"]
    while number >= 1000 and len(prefixes) > 1:
        number /= 1000
        prefixes.pop(0)
    return f"{number:.3g} {prefixes[0]}{unit}".strip()
