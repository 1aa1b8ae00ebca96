"""`SpelledModel`: a language model over the tokens of any tokenizer as one over the symbols that they are spelled in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..members.call import Lock, PerThread
from ..members.checks import check_model
from ..members.devices import execution_device
from ..members.member import keep
from ..members.padding import readable
from ..members.releases import CACHE, takes_cache
from ..members.vocabulary import ends_of, width
from .alphabet import Alphabet
from .covers import Cost, Covers
from .lane import NONE, SEVERAL, Lane
from .lexicon import Lexicon, taken
from .prompts import PromptReader
from .reader import STATES, Asked, Reader
from .sums import following
from .texts import Missing, State
from .written import Written, held

_T = TypeVar("_T")


class SpelledConfig(PreTrainedConfig):
    """Configuration of a [`SpelledModel`]: the width of the common vocabulary, and one layer of cache, for what was read."""

    model_type = "spelled"

    vocab_size: int = 1
    hidden_size: int = 1
    num_hidden_layers: int = 1
    bos_token_id: int | None = None


class SpelledModel(PreTrainedModel, GenerationMixin):
    r"""
    A causal language model and its tokenizer as a language model over an alphabet in which its tokens are spelled (arXiv 2412.03719):
    `P(text ...)` is the sum of the probabilities of all token sequences whose symbols begin with the text. See
    [`~hf_eft.bytes.ByteLevelModel`] and [`~hf_eft.units.TokenLevelModel`].

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        alphabet ([`~hf_eft.spelling.alphabet.Alphabet`]): What ids stand for.
        tokens (`Sequence[bytes | None]`): The bytes of each of the model's tokens.
        spelled (`Sequence[Sequence[int] | None]`): The symbols of each of them; those with none are never generated.
        covers (`int`, *optional*): How many covers a symbol may add; `None` for all.
        threshold (`float`): The share of a text's probability below which a cover is not added.
        as_tokens (`bool`): Whether a prompt is read as the tokenizer cuts it, but for its last few tokens, or symbol by symbol.
        as_given (`bool`, *optional*, defaults to `False`): Whether ids of prompts are this tokenizer's.
    """

    config_class = SpelledConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    is_view = True  # a member reads by it as it is, see `hf_eft.members.member.View`
    _is_stateful = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _no_split_modules: ClassVar[list[str]] = []

    def __init__(
        self,
        config: PreTrainedConfig,
        model: PreTrainedModel,
        tokenizer: Any,
        alphabet: Alphabet,
        tokens: Sequence[bytes | None],
        spelled: Sequence[Sequence[int] | None],
        *,
        covers: int | None,
        threshold: float,
        as_tokens: bool,
        as_given: bool = False,
    ) -> None:
        check_model(type(self).__name__, model)
        if covers is not None and covers < 1:
            raise ValueError(f"`covers` must be 1 or more, or `None` for all, got {covers}.")
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` must be in [0, 1), got {threshold}.")
        super().__init__(config)
        self.model = model
        self.tokenizer = tokenizer
        self._alphabet = alphabet
        lexicon = Lexicon(spelled, ends_of(model, tokenizer), width(model), len(alphabet.ids))
        self._covers = Covers(model, lexicon, covers, threshold)
        self._as_tokens = as_tokens
        self.options: dict[str, Any] = {"covers": covers, "threshold": threshold, "as_tokens": as_tokens}
        prompts = PromptReader(tokenizer, tokens, spelled, self._covers, alphabet, as_tokens, as_given)
        self._reader = Reader(self._covers, prompts, alphabet)
        self._columns = torch.full((alphabet.width,), len(alphabet.ids) + 1, dtype=torch.long)
        self._columns[alphabet.ids] = torch.arange(len(alphabet.ids))
        self._columns[alphabet.end] = len(alphabet.ids)
        self._last, self._written = PerThread(), PerThread()
        self._era: object = None  # another one since states were freed
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
            self._written.value, self._era = None, object()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.reset()  # the states are of the weights that were
        return super()._apply(fn, recurse)

    def init_weights(self) -> None:
        """The model has its weights."""

    def get_input_embeddings(self) -> Any:
        """There are none: symbols are not read one by one."""

    def get_output_embeddings(self) -> Any:
        """There are none: log-probs of symbols are sums."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it is a view of a model and a tokenizer."""
        raise NotImplementedError(
            f"A {type(self).__name__} is a view: save its `model` and `tokenizer`, and make it anew from them."
        )

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
            input_ids (`torch.LongTensor` of shape `(batch, positions)`): Ids of the common vocabulary.
            attention_mask (`torch.Tensor` of shape `(batch, cached + positions)`, *optional*): 0 where an id is padding.
            cache (`DynamicCache`, *optional*): What was read before; extended in place.
            use_cache (`bool`, *optional*): Whether to return what was read.
            logits_to_keep (`int` or `torch.LongTensor`, *optional*, defaults to 0):
                Which positions' logits to return; 0 for all. What is read before the first of them is a prompt.

        Returns:
            [`~transformers.modeling_outputs.CausalLMOutputWithPast`]: Log-probs of the next id, `(batch, positions, vocab)`, float32;
            float64 where the model is.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError(f"A {type(self).__name__} reads `input_ids`; it has no embeddings for `inputs_embeds`.")
        cache = _growing(cache, type(self).__name__)
        if cache is None and use_cache:
            cache = DynamicCache(config=self.config)
        with self._lock:
            after = self._after(input_ids, attention_mask, cache, logits_to_keep)
        logits = after.view(len(input_ids), -1, len(self._columns))
        return CausalLMOutputWithPast(logits=logits.to(input_ids.device), **{CACHE: cache if use_cache else None})

    def _after(
        self, input_ids: torch.Tensor, attention_mask: Any, cache: Cache | None, logits_to_keep: int | torch.Tensor
    ) -> torch.Tensor:
        """The log-probs of the next id behind each position that is asked for, of one row after the other, `(rows * positions, ids)`."""
        rows, new = input_ids.shape
        cached = int(cache.get_seq_length()) if cache is not None else 0
        if cached == 0:
            self.reset()  # the model may have changed since, been moved or given other weights
        mask = _checked_mask(attention_mask, rows, cached + new, type(self).__name__)
        ids = readable(input_ids, mask, {type(self).__name__: self.config.vocab_size}).cpu()
        seen = mask.numpy()
        if (after := self._in_lane(ids, seen, cached, cache)) is not None:
            return after
        positions = keep(torch.arange(new)[None], logits_to_keep)[0].tolist()
        states = self._read(self._asked(ids.numpy(), seen, cached, cache, positions))
        self._last.value = last = [row[-1] for row in states]
        after = following([state for row in states for state in row], self._covers.lexicon)
        if cache is not None and self._covers.lexicon.is_plain:
            self._written.value.lane = Lane.of(self._covers, last, self._tokens, self._columns, STATES, self._era)
        return taken(after, self._columns)

    def _in_lane(self, ids: torch.Tensor, seen: Any, cached: int, cache: Cache | None) -> torch.Tensor | None:
        """The log-probs of the next id of rows that go on in a lane, `(rows, ids)`; a lane that they leave has its states made."""
        written: Written | None = self._written.value
        lane = None if written is None else written.lane
        if written is None or lane is None:
            return None
        is_good = lane.era is self._era
        goes_on = ids.shape[1] == 1 and bool(cached) and seen[:, cached:].all() and written.goes_on(cache, seen[:, :cached])
        if is_good and goes_on and (after := self._whole(lambda: lane.step(ids))) is not None:
            self._hold(cast(Cache, cache), ids, torch.zeros_like(ids))
            written.keys, written.seen = held(cast(Cache, cache)), seen
            return after
        if lane.has_begun:
            if is_good:
                lane.settle(written.texts, lambda row, *known: self._reader.know(written.boundaries[row], *known))
            self._written.value = None  # its texts are those with which the lane began
        return None

    def _asked(self, ids: Any, seen: Any, cached: int, cache: Cache | None, positions: Sequence[int]) -> list[Asked]:
        """What every row asks for. What it read goes into the cache: the ids and, beside each, where the prompt ends."""
        ids, positions = ids * seen[:, cached:], list(positions)  # (rows, new)
        before: Written | None = self._written.value if cached and min(positions) == 0 else None
        if cache is not None and before is not None and before.goes_on(cache, seen[:, :cached]):
            self._hold(cache, torch.from_numpy(ids), torch.zeros(ids.shape, dtype=torch.long))
            written = before.longer(held(cache), seen, ids)
            lengths = before.lengths + seen[:, cached:].cumsum(-1)
        else:
            lengths = seen.cumsum(-1)  # (rows, cached + new): how many ids a row has read
            first = lengths[:, cached + min(positions), None]
            prompt = first if min(positions) > 0 and self._as_tokens else np.zeros_like(first)
            if cached == 0:
                prompt = np.maximum(prompt, self._begun(ids, seen))
            ends, lengths = prompt * seen[:, cached:], lengths[:, cached:]
            if cache is not None:
                both = self._hold(cache, torch.from_numpy(ids), torch.from_numpy(ends))
                ids, ends = (each[:, 0, :, 0].cpu().numpy() for each in both)  # (rows, cached + new)
            written = Written.of(None if cache is None else held(cache), seen, ids, ends)
        self._written.value = written
        wanted = lengths[:, positions].tolist()  # of (rows, new)
        return [Asked(*each) for each in zip(written.texts, written.boundaries, wanted, strict=True)]

    def _hold(self, cache: Cache, ids: torch.Tensor, ends: torch.Tensor) -> Any:
        """Put ids and, beside each, where the prompt ends into a cache, `(rows, new)` both; returns all that it holds."""
        device = held(cache).device if cache.get_seq_length() else self.device
        return cache.update(*(each.to(device).unsqueeze(1).unsqueeze(-1) for each in (ids, ends)), 0)

    def _begun(self, ids: Any, seen: Any) -> Any:
        """How many ids are a prompt at least, `(rows, 1)`: up to the last special one that text follows, or that follows none."""
        text, special = (kind[ids] & (seen == 1) for kind in self._kinds)  # (rows, positions)
        inside = (text[:, ::-1].cumsum(-1)[:, ::-1] > 0) | (text.cumsum(-1) == 0)  # not at the end of a text
        least = (seen.cumsum(-1) * (special & inside)).max(-1, keepdims=True)
        begin = self.config.bos_token_id
        if not self._as_tokens and any(
            count > int(row[kept == 1][0] == begin) for [count], row, kept in zip(least, ids, seen, strict=True) if count
        ):
            raise ValueError(
                f"A {type(self).__name__} that reads prompts symbol by symbol reads plain text, and was given special tokens before "
                "text. Leave them out, or use `prompt='tokens'`."
            )
        return least

    def _read(self, asked: Sequence[Asked]) -> list[list[State]]:
        return self._whole(lambda: self._reader.read(asked))

    def _whole(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except BaseException:
            self.reset()  # half-read states serve nobody
            raise

    @functools.cached_property
    def _kinds(self) -> tuple[Any, Any]:
        """Of each id, whether it is text, and whether it is a special one."""
        special = np.zeros(self._alphabet.width, dtype=bool)
        special[list(self._alphabet.special)] = True
        return np.array([self._alphabet.spelled(i)[0] >= 0 for i in range(self._alphabet.width)]), special

    @functools.cached_property
    def _tokens(self) -> torch.Tensor:
        """Of each id the token that it is, where it is one symbol that one token is spelled as."""
        spelled = [self._alphabet.spelled(i) for i in range(self._alphabet.width)]
        lexicon = self._covers.lexicon
        own = {text[0]: token for text, token in zip(lexicon.texts, lexicon.ids, strict=True)}
        return torch.tensor([own.get(each[0], NONE) if len(each) == 1 else SEVERAL for each in spelled])


def _growing(cache: Cache | None, name: str) -> Cache | None:
    if cache is not None and not isinstance(cache, DynamicCache):
        raise ValueError(
            f"A {name} keeps the ids that it read in a cache that grows, got a {type(cache).__name__}. Use no `cache_implementation`, or a "
            "`DynamicCache`."
        )
    return cache


def _checked_mask(attention_mask: Any, rows: int, length: int, name: str) -> torch.Tensor:
    if attention_mask is None:
        return torch.ones(rows, length, dtype=torch.bool)
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape != (rows, length):
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask).__name__
        raise ValueError(
            f"A {name} takes an `attention_mask` for every id, those cached included: ({rows}, {length}), got {shape}."
        )
    return (attention_mask != 0).cpu()
