"""Continuous batching for several models: one paged cache in which every token's entry holds the states of all members."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

from ...members.combined import Generates
from ...members.member import Member
from ...members.members import Members
from ...recipe.combination import Combination
from ...recipe.combine import certainly, combine
from .limits import FULL, SLIDING, layer_types
from .standing import RequestStanding

_ALIGNMENT = 16  # bytes: a multiple of every dtype's size, so that any member's states can be viewed in place


@dataclass(frozen=True)
class Place:
    """Where a layer of a member keeps its keys (and, in the rows behind, its values): a part of the rows of one layer of the cache."""

    layer: int
    start: int  # bytes
    heads: int
    width: int  # of a head
    dtype: torch.dtype

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """The part of a layer's rows, `(rows, 1, row width)`, as the member's states: `(rows, heads, head width)`, in place."""
        size = self.heads * self.width * self.dtype.itemsize
        part = rows[:, 0].view(torch.uint8)[:, self.start : self.start + size]
        return part.view(self.dtype).unflatten(1, (self.heads, self.width))


class Layout:
    r"""
    The members' layers, laid out as the layers of one model: as wide as the widest member's, with several narrow ones side by side.

    transformers plans memory, shares, copies, swaps out and frees blocks by what this model's configuration says, so that all of it
    holds for the states of all members.
    """

    def __init__(self, models: Mapping[str, PreTrainedModel], main: str) -> None:
        configs = {name: model.config.get_text_config(decoder=True) for name, model in models.items()}
        shapes = {name: (find_num_key_value_heads(config), find_head_dim(config)) for name, config in configs.items()}
        sizes = {name: _aligned(math.prod(shapes[name]) * model.dtype.itemsize) for name, model in models.items()}
        self.row = max(sizes.values())  # bytes
        self.places: dict[str, list[Place]] = {}
        self.layers = 0
        for name, model in models.items():
            side_by_side = self.row // sizes[name]
            count = configs[name].num_hidden_layers
            self.places[name] = [
                Place(self.layers + i // side_by_side, i % side_by_side * sizes[name], *shapes[name], model.dtype)
                for i in range(count)
            ]
            self.layers += math.ceil(count / side_by_side)
        self.config = self._config(configs, models[main].dtype, main)

    def _config(self, configs: Mapping[str, Any], dtype: torch.dtype, main: str) -> PreTrainedConfig:
        """The one model's configuration. The memory plan reads the sizes of activations from it as well."""
        config = PreTrainedConfig()
        queries = max(each.num_attention_heads * find_head_dim(each) for each in configs.values()) * dtype.itemsize
        geometry = {
            "num_hidden_layers": self.layers,
            "num_key_value_heads": 1,
            "head_dim": self.row // dtype.itemsize,
            "num_attention_heads": math.ceil(queries / self.row),
            "hidden_size": max(each.hidden_size for each in configs.values()),
            "vocab_size": max(each.vocab_size for each in configs.values()) * (len(configs) + 1),  # and the combination's
            "eos_token_id": getattr(configs[main], "eos_token_id", None),
        }
        for key, value in geometry.items():
            setattr(config, key, value)
        config._attn_implementation = "sdpa"  # which is to say that masks are made
        return config


def _aligned(size: int) -> int:
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT


class NotPaged(NotImplementedError, AttributeError):
    """A member asks its cache for what a paged cache has not."""


class MemberPages(PagedAttentionCache):
    """A member's part of the paged cache, as its attention layers see it."""

    name = "?"

    def __init__(self, name: str, places: Sequence[Place], cache: PagedAttentionCache) -> None:
        views = cache.cache_allocators[FULL]._kv_token_views
        self.name = name
        self.states = [tuple(place.of(rows) for rows in views[place.layer]) for place in places]
        self.updated: set[int] = set()  # layers, in this forward
        self.rows: tuple[torch.Tensor, torch.Tensor]

    def begin(self, read: torch.Tensor, write: torch.Tensor) -> None:
        """Say which rows the next forward reads and writes, in every layer: not all layers pass on what they are told of it."""
        self.rows = read, write
        self.updated.clear()

    @torch.compiler.disable
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens' states, `(1, heads, positions, width)`, and return those of all tokens that are attended to."""
        self.updated.add(layer_idx)
        read, write = self.rows
        attended = []
        for new, states in zip((key_states, value_states), self.states[layer_idx], strict=True):
            rows = new[0].transpose(0, 1)  # (positions, heads, width)
            if rows.shape[1:] != states.shape[1:] or rows.dtype != states.dtype:
                raise NotImplementedError(
                    f"Layer {layer_idx} of the member {self.name!r} has states of {tuple(rows.shape[1:])}, {rows.dtype}, where its "
                    f"configuration says {tuple(states.shape[1:])}, {states.dtype}: it cannot be batched continuously. Use `generate`."
                )
            states.index_copy_(0, write, rows)
            rows = states.index_select(0, read) if read.numel() else rows  # nothing to read: nothing was cached
            attended.append(rows.transpose(0, 1)[None])
        return attended[0], attended[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing: it is no one sequence that is read. Members are told positions and masks."""
        return 0

    def __getattr__(self, attribute: str) -> Any:
        raise NotPaged(
            f"The member {self.name!r} asks its cache for `{attribute}`, which a paged one has not: it cannot be batched continuously. "
            "Use `generate`."
        )

    def check_used(self) -> None:
        """Raise if a layer attended without the cache."""
        if len(self.updated) != len(self.states):
            raise NotImplementedError(
                f"{len(self.states) - len(self.updated)} layers of the member {self.name!r} do not use the paged cache: it cannot be "
                "batched continuously. Use `generate`."
            )


class RequestCoefficients(ContinuousBatchingLogitsProcessor):
    """
    Not a processor: it is told, before each forward, which requests will get a token, and keeps their coefficients, and where they stand in
    the phases of the recipe.
    """

    supported_kwargs: ClassVar[dict[str, type]] = {"coefficients": tuple}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...] | None] = []  # a row of a request, or a row for each phase
        self.standing = RequestStanding()

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        self.given = [request.state.logit_processor_kwargs.get("coefficients") for request in requests_with_new_token]
        self.standing.look([request.state for request in requests_with_new_token])
        return torch.zeros(len(self.given), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        return scores

    def rows(self, count: int, combination: Combination, names: Sequence[str]) -> torch.Tensor | None:
        """`(1, count, members)`, rows without a request at the end; `None` if all are the recipe's, which are numbers."""
        if not any(self.given) and not combination.phased:
            return None
        default = combination.at([0], names)[0].tolist()
        known = [default if own is None else own for own in self.standing.rows(self.given)]
        return torch.tensor([[*known, *[default] * (count - len(known))]])


class PagedMembers:
    """The members as the one model that transformers' continuous batching runs: its geometry is the layout's."""

    _supports_flash_attn = False  # flash kernels bring their own paging, by the geometry of one model

    def __init__(self, model: Generates) -> None:
        self.model = model
        self.members: Members = model._members
        self.layout = Layout(self.members.distinct_models, self.members.main)
        self.config = self.layout.config
        self.coefficients = RequestCoefficients()
        self._pages: tuple[PagedAttentionCache, dict[str, MemberPages]] | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.members.distinct[self.members.main].model.dtype

    @property
    def _cached_continuous_batching_manager(self) -> Any:
        return self.model._cached_continuous_batching_manager

    @_cached_continuous_batching_manager.setter
    def _cached_continuous_batching_manager(self, manager: Any) -> None:
        self.model._cached_continuous_batching_manager = manager

    def eval(self) -> PagedMembers:
        """As it is: members in training mode are refused before, not switched."""
        return self

    def _supports_logits_to_keep(self) -> bool:
        return True

    def _get_logits_processor(self, generation_config: Any) -> Any:
        processors = self.model._get_logits_processor(generation_config, device=self.device)
        self.coefficients.standing.begin(self.model)
        for processor in processors:
            # Transformers leaves it open for most. Only options that look at the scores of a row alone have come this far.
            processor.supports_continuous_batching = True
        return type(processors)([*processors, self.coefficients])

    def __call__(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        cache: PagedAttentionCache,
        logits_to_keep: torch.Tensor,
        cu_seq_lens_k: Mapping[str, torch.Tensor],
        read_index: Sequence[torch.Tensor],
        write_index: Sequence[torch.Tensor],
        **packed: Any,
    ) -> SimpleNamespace:
        """Run every distinct member on the packed tokens of a batch, each on its own states, and combine what they say."""
        outputs = {}
        for name, member in self.members.distinct.items():
            pages = self.pages(cache)[name]
            pages.begin(read_index[0], write_index[0])
            outputs[name] = member.forward(
                input_ids=input_ids,
                inputs_embeds=None,
                attention_mask=masks_of(member, attention_mask, position_ids, cu_seq_lens_k[FULL]),
                position_ids=position_ids,
                cache=None,
                use_cache=False,
                logits_to_keep=logits_to_keep,
                extra={"cache": pages},  # layers update it; before transformers 5.24, attention functions do
            )
            pages.check_used()
        combination, count = self.model.combination, logits_to_keep.shape[0]
        rows = self.coefficients.rows(count, combination, self.members.names)
        logits = combine(self.members.logits(outputs), combination, rows)
        logits = self.members.vocabulary.widen(logits, self.members.vocab_size)
        return SimpleNamespace(logits=certainly(logits, self.coefficients.standing.certain(count)))

    def pages(self, cache: PagedAttentionCache) -> dict[str, MemberPages]:
        """Every distinct member's part of a cache, by name."""
        if self._pages is None or self._pages[0] is not cache:
            with torch.inference_mode(False):  # what is written into later, in a mode or in none
                self._pages = cache, {name: MemberPages(name, places, cache) for name, places in self.layout.places.items()}
        return self._pages[1]


def masks_of(member: Member, mask: torch.Tensor, positions: torch.Tensor, starts: torch.Tensor) -> Any:
    r"""
    A member's masks of a packed batch, in its dtype.

    Args:
        member ([`Member`]): The member, whose layers may have a window.
        mask (`torch.FloatTensor` of shape `(1, 1, tokens, attended)`): 0 where a token may look, without a window.
        positions (`torch.LongTensor` of shape `(1, tokens)`): The tokens' positions in their sequences.
        starts (`torch.LongTensor` of shape `(sequences + 1,)`): Where each sequence begins among what is attended to.

    Returns:
        `torch.FloatTensor` or `dict[str, torch.FloatTensor]`: One mask, or one for each kind of layer.
    """
    dtype, config = member.model.dtype, member.model.config.get_text_config(decoder=True)
    closed = torch.finfo(dtype).min
    full = mask if mask.dtype == dtype else torch.zeros_like(mask, dtype=dtype).masked_fill_(mask != 0, closed)
    kinds = layer_types(config)
    if SLIDING not in kinds:
        return full
    attended = torch.arange(mask.shape[-1], device=mask.device)
    sequence = torch.searchsorted(starts.long(), attended, right=True) - 1
    place = attended - starts.long()[sequence]  # in its own sequence
    too_far = positions[0][:, None] - place[None, :] >= config.sliding_window  # (tokens, attended)
    masks = {FULL: full, SLIDING: full.masked_fill(too_far, closed)}
    return masks if len(kinds) > 1 else masks[SLIDING]
