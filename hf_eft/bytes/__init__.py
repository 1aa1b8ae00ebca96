"""`ByteLevelModel`: a language model over the tokens of any tokenizer as one over bytes, which members of all families speak."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..members.adapters import resolve
from ..members.call import Lock, PerThread
from ..members.checks import check_model
from ..members.devices import execution_device
from ..members.member import keep
from ..members.padding import readable
from ..members.releases import CACHE, takes_cache
from ..members.vocabulary import end_tokens, width
from ..prompts.pictures import tokenizers_of
from .covers import END, Cost, Covers, Missing, State, following, log_sum
from .prompts import EOS, OFFSET, PAD, PromptReader
from .reader import Asked, ByteReader
from .tokens import BYTES, ByteTokenizer, Lexicon
from .tokens import token_bytes as bytes_of_tokens

__all__ = ["ByteLevelModel", "ByteTokenizer", "in_vocabulary"]

Prompt = Literal["tokens", "bytes"]


class ByteLevelConfig(PreTrainedConfig):
    """Configuration of a [`ByteLevelModel`]: the ids of `ByT5Tokenizer` without sentinels, and one layer of cache, for what was read."""

    model_type = "byte_level"

    vocab_size: int = BYTES + OFFSET
    hidden_size: int = 1
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    pad_token_id: int | None = PAD
    eos_token_id: int | None = EOS


class LogProb(NamedTuple):
    """What the log-probability of a text lies between; without a limit of covers both are one number."""

    lower: float
    upper: float


class ByteLevelModel(PreTrainedModel, GenerationMixin):
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
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _no_split_modules: ClassVar[list[str]] = []

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
        check_model("bytes", model)
        if covers is not None and covers < 1:
            raise ValueError(f"`covers` must be 1 or more, or `None` for all, got {covers}.")
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must be in [0, 1), got {threshold}.")
        if prompt not in get_args(Prompt):
            raise ValueError(f"`prompt` must be one of {', '.join(get_args(Prompt))}, got {prompt!r}.")
        super().__init__(ByteLevelConfig())
        self.model = model
        self.tokenizer = tokenizer
        self.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=EOS)
        tokens = list(token_bytes if token_bytes is not None else bytes_of_tokens(tokenizer))
        ends = end_tokens(model.generation_config) or [i for i in [tokenizer.eos_token_id] if i is not None]
        self._covers = Covers(model, Lexicon(tokens, ends, width(model)), covers, threshold)
        self._as_tokens = prompt == "tokens"
        self._reader = ByteReader(self._covers, PromptReader(tokenizer, tokens, self._covers, self._as_tokens))
        self._last = PerThread()
        self._lock = Lock()
        self.training = model.training  # not `train()`, which would change the model's mode

    @property
    def cost(self) -> Cost:
        """What was run since this was last set to `Cost()`."""
        return self._covers.cost

    @cost.setter
    def cost(self, cost: Cost) -> None:
        self._covers.cost = cost

    @property
    def missing(self) -> list[Missing]:
        """How much of its text's probability was left out since the prompt, for each row of this thread's last forward."""
        return [state.missing for state in self._last.value or []]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return execution_device(self.model)

    def reset(self) -> None:
        """Free the states."""
        with self._lock:
            self._reader.reset()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.reset()  # the states are of the weights that were
        return super()._apply(fn, recurse)

    def init_weights(self) -> None:
        """The model has its weights."""

    def get_input_embeddings(self) -> Any:
        """There are none: bytes are not read one by one."""

    def get_output_embeddings(self) -> Any:
        """There are none: log-probs of bytes are sums."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it is a view of a model and a tokenizer."""
        raise NotImplementedError("A byte-level model is a view: save its `model` and `tokenizer`, and make it anew from them.")

    def log_prob(self, text: str | bytes, prompt: str | bytes = b"", end: bool = False) -> LogProb:
        r"""
        The log-probability that what follows `prompt` begins with `text` or, with `end`, is `text`.

        Returns:
            [`LogProb`]: Natural logs. They differ by what was left out since the prompt's last settled token.
        """
        before, after = (part.encode() if isinstance(part, str) else part for part in (prompt, text))
        ids = torch.tensor([byte + OFFSET for byte in before + after], dtype=torch.long)
        with self._lock:
            self.reset()
            [[first, last]] = self._read([Asked(ids, len(before) if self._as_tokens else 0, [len(before), len(ids)])])
        reached = float(last.joint[END]) if end else last.log_prob
        return LogProb(reached - _most(first.log_prob, first), _most(reached, last) - first.log_prob)

    @takes_cache
    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, positions)`): Bytes, as ids of the byte tokenizer.
            attention_mask (`torch.Tensor` of shape `(batch, cached + positions)`, *optional*): 0 where an id is padding.
            cache (`DynamicCache`, *optional*): What was read before; extended in place.
            use_cache (`bool`, *optional*): Whether to return what was read.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0):
                Which positions' logits to return; 0 for all. What is read before the first of them is a prompt.

        Returns:
            [`~transformers.modeling_outputs.CausalLMOutputWithPast`]: Log-probs of the next id, float32, `(batch, positions, 259)`.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("Byte-level members read `input_ids`; they have no embeddings for `inputs_embeds`.")
        cache = _growing(cache)
        if cache is None and use_cache:
            cache = DynamicCache(config=self.config)
        with self._lock:
            states = self._read(self._asked(input_ids, attention_mask, cache, logits_to_keep))
        self._last.value = [row[-1] for row in states]
        return CausalLMOutputWithPast(logits=_as_logits(states).to(self.device), **{CACHE: cache if use_cache else None})

    def _asked(
        self, input_ids: torch.Tensor, attention_mask: Any, cache: Cache | None, logits_to_keep: int | torch.Tensor
    ) -> list[Asked]:
        """What every row asks for. What it read goes into the cache: the ids and, beside each, where the prompt ends."""
        rows, new = input_ids.shape
        cached = int(cache.get_seq_length()) if cache is not None else 0
        if cached == 0:
            self.reset()  # the model may have changed since, been moved or given other weights
        mask = _checked_mask(attention_mask, rows, cached + new)
        input_ids = readable(input_ids, mask, {"bytes": self.config.vocab_size})
        positions = keep(torch.arange(new)[None], logits_to_keep)[0].tolist()
        lengths = mask.cumsum(-1)  # (rows, cached + new): how many ids a row has read
        prompt = lengths[:, cached + min(positions), None] if min(positions) > 0 and self._as_tokens else lengths[:, :1] * 0
        ids, ends = input_ids.cpu() * mask[:, cached:], prompt * mask[:, cached:]  # (rows, new)
        if cache is not None:
            device = self.device
            stored = cache.update(*(each[:, None, :, None].to(device) for each in (ids, ends)), 0)
            ids, ends = (each[:, 0, :, 0].cpu() for each in stored)  # (rows, cached + new)
        boundaries = (ends * mask).amax(-1).tolist()
        return [
            Asked(ids[row][mask[row].bool()], boundaries[row], lengths[row, [cached + p for p in positions]].tolist())
            for row in range(rows)
        ]

    def _read(self, asked: Sequence[Asked]) -> list[list[State]]:
        try:
            return self._reader.read(asked)
        except BaseException:
            self.reset()  # half-read states serve nobody
            raise


def in_vocabulary(
    vocabulary: str | None, given: Mapping[str, Any], wanted: Collection[str], tokenizers: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    r"""
    The members in the vocabulary in which they are to be combined: as they are or, for `"bytes"`, as byte-level models; those that share a
    model and a tokenizer share the byte-level model too.

    Args:
        vocabulary (`str`, *optional*): `"bytes"`, or `None` for the tokens of the members.
        given (`Mapping[str, PreTrainedModel or PeftModel or str]`): The members, as [`~hf_eft.members.members.Members`] takes them.
        wanted (`Collection[str]`): The members that the recipe names.
        tokenizers (`Mapping[str, PreTrainedTokenizerBase]`, *optional*): Every member's tokenizer.

    Raises:
        `ValueError`: If the vocabulary is unknown, or a member has no tokenizer or one whose tokens' bytes are not known.
    """
    if vocabulary not in (None, "bytes"):
        raise ValueError(f"`vocabulary` must be 'bytes' or None, got {vocabulary!r}.")
    if vocabulary is None:
        return given
    made: dict[tuple[int, int], ByteLevelModel] = {}
    return {
        name: model if isinstance(model, ByteLevelModel) else _view(name, model, tokenizers_of(tokenizers), made)
        for name, model in resolve(given, wanted).models.items()
    }


def in_bytes(tokenizers: Mapping[str, Any]) -> dict[str, ByteTokenizer]:
    """The tokenizers of members that are read as bytes: what spells the markers of phases, and writes chats in their templates."""
    return {name: ByteTokenizer(each) for name, each in tokenizers_of(tokenizers).items()}


def _view(
    name: str, model: PreTrainedModel, tokenizers: Mapping[str, Any], made: dict[tuple[int, int], ByteLevelModel]
) -> ByteLevelModel:
    check_model(name, model)
    if name not in tokenizers:
        raise ValueError(
            f"`vocabulary='bytes'` needs the tokenizer of every member, but {name!r} has none: `tokenizers={{{name!r}: tokenizer, ...}}`."
        )
    key = id(model), id(tokenizers[name])
    if key not in made:
        try:
            made[key] = ByteLevelModel(model, tokenizers[name])
        except ValueError as error:
            raise ValueError(f"The member {name!r} cannot be read as bytes. {error}") from error
    return made[key]


def _most(log_prob: float, state: State) -> float:
    """With all that was left out."""
    return log_sum([log_prob, state.left_out])


def _growing(cache: Cache | None) -> Cache | None:
    if cache is not None and not isinstance(cache, DynamicCache):
        raise ValueError(
            f"Byte-level members keep the bytes that they read in a cache that grows, got a {type(cache).__name__}. Use no "
            "`cache_implementation`, or a `DynamicCache`."
        )
    return cache


def _checked_mask(attention_mask: Any, rows: int, length: int) -> torch.Tensor:
    if attention_mask is None:
        return torch.ones(rows, length, dtype=torch.long)
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape != (rows, length):
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask).__name__
        raise ValueError(
            f"Byte-level members take an `attention_mask` for every id, those cached included: ({rows}, {length}), got {shape}."
        )
    return (attention_mask != 0).long().cpu()


def _as_logits(rows: Sequence[Sequence[State]]) -> torch.Tensor:
    """What follows each state as log-probs of the ids, `(rows, positions, 259)`, float32."""
    after = following([state for row in rows for state in row]).float().view(len(rows), -1, BYTES + 1)
    logits = after.new_full((*after.shape[:-1], BYTES + OFFSET), -math.inf)
    logits[..., EOS] = after[..., END]
    logits[..., OFFSET:] = after[..., :BYTES]
    return logits
