"""A tokenizer that cuts texts into units, with the base's ids."""

from __future__ import annotations

import copy
import json
from typing import Any

from tokenizers import Tokenizer

from .common import CommonUnits


def unit_tokenizer(tokenizer: Any, units: CommonUnits) -> Any:
    r"""
    The base's tokenizer, which writes units alone: for texts that are to be scored, or looked for among what is generated. (Prompts may be
    written in any tokens of the base; what is generated is decoded by the base's own tokenizer.)

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The base's tokenizer, of the `tokenizers` library.
        units ([`~hf_eft.units.common.CommonUnits`]): The units that it knows.

    Returns:
        `PreTrainedTokenizerBase`: A copy that makes no token of text that is not a unit; the same tokenizer, if there are no others.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, written = state["model"], set(units.ids)
    if model["type"] != "BPE" or written >= set(model["vocab"].values()):
        return tokenizer
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i in written}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= model["vocab"].keys()]
    model["ignore_merges"] = False
    speaker = copy.deepcopy(tokenizer)
    speaker._tokenizer = Tokenizer.from_str(json.dumps(state))
    return speaker
