"""`TokenLevelModel`: a language model over the tokens of one tokenizer as one over tokens of another, the base's."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

from transformers import GenerationConfig, PreTrainedModel

from ..bytes.tokens import token_bytes
from ..spelling.model import SpelledConfig, SpelledModel
from .alphabet import UnitAlphabet
from .common import CommonUnits

Prompt = Literal["tokens", "units"]
_OF_IDS = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
)


class TokenLevelConfig(SpelledConfig):
    """Configuration of a [`TokenLevelModel`]: the ids of the base's vocabulary."""

    model_type = "token_level"


class TokenLevelModel(SpelledModel):
    r"""
    A causal language model and its tokenizer as a language model over **units**: those tokens of the base in which all members' tokens can
    be spelled ([`~hf_eft.units.common.common_units`]). `P(units ...)` is the sum of the probabilities of all token sequences whose units
    begin so.

    Its ids are the base's. It reads all of them: one that is no unit is read as the units that it is made of. It writes units, and one end
    of text.

    Contract:

    - **Exact** with `covers=None, threshold=0`: the texts that it writes have the probabilities that the model gives them. With a limit,
      what is left out is known: [`TokenLevelModel.missing`].
    - **Prompts** are given in the base's ids. The base reads them as they are; other members read the text that they are, by their own
      tokenizer. A begin of text is each member's own, the ids that end a text are the member's end of text, and other special tokens
      are the text that they are written as.
    - **Decoding, state, threads**: as [`~hf_eft.bytes.ByteLevelModel`].

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        name (`str`): The member that it is among those that `units` was made for.
        units ([`~hf_eft.units.common.CommonUnits`]): The units of all members.
        alphabet ([`~hf_eft.units.alphabet.UnitAlphabet`]): The base's ids as units.
        covers (`int`, *optional*, defaults to 4): How many covers a unit may add; `None` for all.
        threshold (`float`, *optional*, defaults to 0.001): The share of a text's probability below which a cover is not added.
        prompt (`str`, *optional*, defaults to `"tokens"`):
            How a prompt is read. `"tokens"`: as tokens, but for the last few, which the continuation may merge with. `"units"`: unit by
            unit, all cuts of it summed over.

    Raises:
        `ValueError`: If an option is out of range.
    """

    config_class = TokenLevelConfig

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        name: str,
        units: CommonUnits,
        alphabet: UnitAlphabet,
        *,
        covers: int | None = 4,
        threshold: float = 1e-3,
        prompt: Prompt = "tokens",
    ) -> None:
        if prompt not in get_args(Prompt):
            raise ValueError(f"`prompt` must be one of {', '.join(get_args(Prompt))}, got {prompt!r}.")
        ids = alphabet.tokenizer
        config = TokenLevelConfig(
            vocab_size=alphabet.width, eos_token_id=alphabet.end, pad_token_id=ids.pad_token_id, bos_token_id=ids.bos_token_id
        )
        super().__init__(
            config,
            model,
            tokenizer,
            alphabet,
            token_bytes(tokenizer),
            units.spelled[name],
            covers=covers,
            threshold=threshold,
            as_tokens=prompt == "tokens",
            as_given=tokenizer is ids,
        )
        self.longer = alphabet.longer
        self.generation_config = _in_ids_of(alphabet, model.generation_config)


def _in_ids_of(alphabet: UnitAlphabet, own: GenerationConfig) -> GenerationConfig:
    """A model's generation configuration, with ids of the base in the place of its own, or none."""
    made = copy.deepcopy(own)
    ids = alphabet.tokenizer
    made.bos_token_id, made.eos_token_id = ids.bos_token_id, alphabet.end
    made.pad_token_id = alphabet.end if ids.pad_token_id is None else ids.pad_token_id
    for name in _OF_IDS:
        if getattr(made, name, None) is not None:
            setattr(made, name, None)
    return made
