"""Do these members speak the same tokens?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def width(model: PreTrainedModel) -> int:
    """How many logits a model returns for a position."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    # Packed (quantised) weights do not have one row per token: the configuration says what the logits will be.
    if weight is not None and weight.dim() == 2 and weight.is_floating_point():
        return int(weight.shape[0])
    return int(model.config.get_text_config(decoder=True).vocab_size)


def check_widths(models: Mapping[str, PreTrainedModel]) -> int:
    """
    The common width of the members' logits.

    Raises:
        `ValueError`: If they differ, naming each member's width.
    """
    widths = {name: width(model) for name, model in models.items()}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name!r}: {n}" for name, n in widths.items())
        raise ValueError(
            f"The members must return logits of one width, got {listed}. If their tokenizers are the same and only the "
            "padding of the embedding table differs, bring them to one width with `model.resize_token_embeddings(width)`."
        )
    return next(iter(widths.values()))


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
            raise ValueError(
                f"The members' vocabularies differ in content: {problem}. Log-probs can only be combined token by token: use "
                "members of one model family, with one tokenizer."
            )
