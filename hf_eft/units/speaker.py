"""A tokenizer that cuts texts into units, with the base's ids."""

from __future__ import annotations

import copy
import json
from typing import Any

from tokenizers import Tokenizer

from ..bytes.tokens import token_bytes
from .common import CommonUnits

_LAST = -1e6  # the score of a piece that is taken where there is no other


def unit_tokenizer(tokenizer: Any, units: CommonUnits) -> Any:
    r"""
    The base's tokenizer, which writes units alone: for texts that are to be scored, or looked for among what is generated. (Prompts may be
    written in any tokens of the base; what is generated is decoded by the base's own tokenizer.)

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The base's tokenizer, of the `tokenizers` library.
        units ([`~hf_eft.units.common.CommonUnits`]): The units that it knows.

    Returns:
        `PreTrainedTokenizerBase`: A copy that makes no token of text that is not a unit, where the units can write it; special tokens keep
        their ids. The same tokenizer, if it has no other tokens.
    """
    written = set(units.ids)
    longer = {i for i, text in enumerate(token_bytes(tokenizer)) if text is not None} - written
    if not longer:
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in longer]
    if model["type"] == "Unigram":
        model["vocab"] = [[piece, _LAST if i in longer else score] for i, (piece, score) in enumerate(model["vocab"])]
    else:
        kept = {token: i for token, i in model["vocab"].items() if i not in longer or token == model["unk_token"]}
        # Added tokens have other ids when they are loaded, if the model does not have them.
        model["vocab"] = kept | {token["content"]: token["id"] for token in state["added_tokens"]}
    if model["type"] == "BPE":
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= model["vocab"].keys()]
        model["ignore_merges"] = False
    speaker = copy.deepcopy(tokenizer)
    speaker._tokenizer = Tokenizer.from_str(json.dumps(state))
    return speaker
