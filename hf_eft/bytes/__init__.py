"""`ByteLevelModel`: a language model over the tokens of any tokenizer as one over bytes, which members of all families speak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..spelling.model import SpelledConfig, SpelledModel
from ..spelling.reader import Asked
from ..spelling.sums import measure
from ..spelling.texts import State, log_sum
from .alphabet import EOS, OFFSET, PAD, ByteAlphabet
from .tokens import BYTES, ByteTokenizer
from .tokens import token_bytes as bytes_of_tokens

__all__ = ["ByteLevelModel", "ByteTokenizer"]

Prompt = Literal["tokens", "bytes"]


class ByteLevelConfig(SpelledConfig):
    """Configuration of a [`ByteLevelModel`]: the ids of `ByT5Tokenizer` without sentinels."""

    model_type = "byte_level"

    vocab_size: int = BYTES + OFFSET
    pad_token_id: int | None = PAD
    eos_token_id: int | None = EOS


class LogProb(NamedTuple):
    """What the log-probability of a text lies between; without a limit of covers both are one number."""

    lower: float
    upper: float


class ByteLevelModel(SpelledModel):
    r"""
    A causal language model and its tokenizer as a language model over UTF-8 bytes (arXiv 2412.03719), so that members whose tokenizers
    differ can be combined. `P(text ...)` is the sum of the probabilities of all token sequences whose bytes begin with the text.

    Its ids are those of [`~hf_eft.bytes.tokens.ByteTokenizer`]; its only special token that is ever generated is the end of text, which is
    the model's own. Special tokens in a prompt are written as text, and read by the model's own tokenizer.

    Contract:

    - **Exact** with `covers=None, threshold=0`: probabilities of texts are those of the enumeration of all token sequences. The number of
      covers then grows with the number of ways to cut the text, exponentially. With a limit, what is left out is known:
      [`ByteLevelModel.missing`], [`ByteLevelModel.log_prob`].
    - **Decoding**: every strategy of `generate` with a cache that grows; static and quantized caches, `inputs_embeds` and gradients are
      refused or not there. `max_new_tokens` counts bytes. The model's own sampling defaults, which were chosen for tokens, are not taken.
    - **State**: the cache holds the ids that were read, and nothing else; the model's states are kept beside it, keyed on them.
    - **Threads**: calls from several threads are taken one step after the other.
    - **Cost**: about one forward of the model a token for `covers=1`, and more for more; counted in `cost`.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        covers (`int`, *optional*, defaults to 4): How many covers a byte may add; `None` for all.
        threshold (`float`, *optional*, defaults to 0.001): The share of a text's probability below which a cover is not added.
        prompt (`str`, *optional*, defaults to `"tokens"`):
            How a prompt is read. `"tokens"`: as the tokenizer cuts it, but for its last few tokens, which the continuation may merge with.
            `"bytes"`: byte by byte, all cuts of it summed over.
        token_bytes (`Sequence[bytes or None]`, *optional*): The bytes of each token, for a tokenizer which does not tell.

    Raises:
        `ValueError`: If it is not known which bytes a token is, or an option is out of range.

    Example:

    ```python
    >>> from hf_eft import tiny
    >>> from hf_eft.bytes import ByteLevelModel
    >>> from hf_eft.bytes.tokens import ByteTokenizer

    >>> base, *_, tokenizer = tiny.load()
    >>> model = ByteLevelModel(base, tokenizer)
    >>> inputs = ByteTokenizer()("Question: Where was Grace Baker bo", return_tensors="pt")
    >>> ByteTokenizer().decode(model.generate(**inputs, max_new_tokens=3)[0])
    'Question: Where was Grace Baker born?'
    ```
    """

    config_class = ByteLevelConfig

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        covers: int | None = 4,
        threshold: float = 1e-3,
        prompt: Prompt = "tokens",
        token_bytes: Sequence[bytes | None] | None = None,
    ) -> None:
        if prompt not in get_args(Prompt):
            raise ValueError(f"`prompt` must be one of {', '.join(get_args(Prompt))}, got {prompt!r}.")
        tokens = list(token_bytes if token_bytes is not None else bytes_of_tokens(tokenizer))
        super().__init__(
            ByteLevelConfig(),
            model,
            tokenizer,
            ByteAlphabet(),
            tokens,
            tokens,
            covers=covers,
            threshold=threshold,
            as_tokens=prompt == "tokens",
        )
        self.options |= {} if token_bytes is None else {"token_bytes": tokens}
        self.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=EOS)

    def log_prob(self, text: str | bytes, prompt: str | bytes = b"", end: bool = False) -> LogProb:
        r"""
        The log-probability that what follows `prompt` begins with `text` or, with `end`, is `text`.

        Returns:
            [`LogProb`]: Natural logs. They differ by what was left out since the prompt's last settled token.
        """
        before, after = (part.encode() if isinstance(part, str) else part for part in (prompt, text))
        ids = torch.tensor([byte + OFFSET for byte in before + after], dtype=torch.int32)
        with self._lock:
            self.reset()
            [[first, last]] = self._read(
                [Asked(ids.numpy().tobytes(), len(before) if self._as_tokens else 0, [len(before), len(ids)])]
            )
        measure([first, last], self._covers.lexicon)
        reached = last.log_prob
        if end:
            reached += -math.inf if last.next is None else float(last.next[-1])
        return LogProb(reached - _most(first.log_prob, first), _most(reached, last) - first.log_prob)


def _most(log_prob: float, state: State) -> float:
    """With all that was left out."""
    return log_sum([log_prob, state.left_out])
