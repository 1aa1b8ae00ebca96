"""Do these members speak the same tokens?"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..prompts.pictures import tokenizers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# By how many tokens widths may differ without a tokenizer's word that it is padding: embedding tables are padded to multiples of 64, or by
# a share (Qwen2.5: 151,936 and 152,064).
_PADDING = 64
_PADDING_SHARE = 0.01


def width(model: PreTrainedModel) -> int:
    """How many logits a model returns for a position."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    # Packed (quantised) weights do not have one row per token, and layers that are quantised on the way have a method of that name.
    if isinstance(weight, torch.Tensor) and weight.dim() == 2 and weight.is_floating_point():
        return int(weight.shape[0])
    return int(getattr(head, "out_features", model.config.get_text_config(decoder=True).vocab_size))


def table_rows(model: PreTrainedModel) -> int:
    """How many ids a model can look up."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        table = None
    return int(getattr(table, "num_embeddings", model.config.get_text_config(decoder=True).vocab_size))


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a text of a model: those that it names, or else the one that its tokenizer does; of no model, the latter."""
    named = [] if model is None else end_tokens(model.generation_config)
    return named or [end for end in [tokenizer.eos_token_id] if end is not None]


def end_tokens(generation_config: Any) -> list[int]:
    """
    The ids that end a text.

    Raises:
        `ValueError`: If something else stands in their place, as a file may have it.
    """
    value = generation_config.eos_token_id
    ends = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    try:
        return [operator.index(end) for end in ends]
    except TypeError:
        raise ValueError(
            f"`eos_token_id` of a generation config must be a token or a list of them, got {value!r:.80}."
        ) from None


class Vocabulary:
    r"""
    The tokens that all members have, where their heads and embedding tables differ in width (padding, an added token). Ids that a member
    cannot read, or that a tokenizer does not know, are never generated.

    Args:
        widths (`Mapping[str, int]`): How many logits each member returns.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`, *optional*):
            The members' tokenizers, to have their contents compared; those of processors where members have these.

    Raises:
        `ValueError`: If the tokenizers differ in content, or the widths differ by more than padding and no tokenizer says that they may.
    """

    def __init__(self, widths: Mapping[str, int], tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None) -> None:
        self.widths = dict(widths)
        self.tokenizers = tokenizers = tokenizers_of(tokenizers)
        self.size = min(widths.values())
        self.known: torch.Tensor | None = None
        if tokenizers:
            check_tokenizers(tokenizers)
            shared = set.intersection(*(set(tokenizer.get_vocab().values()) for tokenizer in tokenizers.values()))
            self.known = torch.zeros(self.size, dtype=torch.bool)
            self.known[[i for i in shared if i < self.size]] = True
        elif max(widths.values()) - self.size > max(_PADDING, _PADDING_SHARE * self.size):
            listed = ", ".join(f"{name!r}: {n}" for name, n in widths.items())
            raise ValueError(
                f"The members' vocabularies differ by more than padding, got {listed} tokens. If their tokenizers agree on the tokens that "
                "all have, say so: `tokenizers={name: tokenizer, ...}`. Otherwise use members of one model family."
            )

    def cut(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits, `(..., width)`, of the tokens that all have, `(..., size)`: a view."""
        return logits if logits.shape[-1] == self.size else logits[..., : self.size]

    def widen(self, logits: torch.Tensor, width: int) -> torch.Tensor:
        """Logits of the tokens that all have, `(..., size)`, as `(..., width)`: what is never generated is ruled out, in place."""
        if self.known is not None:
            logits.masked_fill_(~self.known.to(logits.device), -torch.inf)
        return logits if width == self.size else torch.nn.functional.pad(logits, (0, width - self.size), value=-torch.inf)

    def check_end(self, ends: Collection[int], name: str) -> None:
        """Raise if a text could never end: no end token of the member `name` is one that all have."""
        if ends and not any(end < self.size and (self.known is None or bool(self.known[end])) for end in ends):
            raise ValueError(
                f"Texts could never end: of the end tokens {sorted(ends)} of the member {name!r}, the members {self.widths} have none in "
                "common. Add the token to the others (`resize_token_embeddings`), or set `generation_config.eos_token_id` of that member "
                "to one that all have."
            )


class TokenizersDifferError(ValueError):
    """Members' tokenizers differ in content. `tokenizers` are those of the members, by name."""

    def __init__(self, message: str, tokenizers: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.tokenizers = dict(tokenizers)


def check_tokenizers(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """
    Check that every member's tokenizer gives the same id to the same token. Content decides, not size: a tokenizer may know
    tokens that the first does not, but none under another id.

    Raises:
        `ValueError`: Naming two members, a token and the ids that each gives it.
    """
    first, *others = tokenizers
    known = tokenizers[first].get_vocab()
    token_of = {i: token for token, i in known.items()}
    for name in others:
        for token, i in tokenizers[name].get_vocab().items():
            if known.get(token, i) != i:
                problem = f"the token {token!r} is {known[token]} in {first!r} but {i} in {name!r}"
            elif token not in known and i in token_of:
                problem = f"the id {i} is {token_of[i]!r} in {first!r} but {token!r} in {name!r}"
            else:
                continue
            raise TokenizersDifferError(
                f"The members' vocabularies differ in content: {problem}. Log-probs can only be combined token by token: use "
                "members of one model family, with one tokenizer; or combine them by common tokens or bytes: `vocabulary='auto'`.",
                tokenizers,
            )
