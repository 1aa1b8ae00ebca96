"""`EFTCache`: the caches of all members behind the one `Cache` that transformers sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    QuantizedCache,
    StaticCache,
)

from .halfway import check_whole, together
from .positions import Positions
from .ragged import make_even
from .recurrent import give_layers, is_recurrent, records
from .roll_back import crop, shift_rows, trim_left
from .siblings import check_room, sibling_cache
from .unread import Unread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .adapters.stack import AnyJoint, Stack


class EFTCache(Cache):
    r"""
    The `cache` (`past_key_values` before transformers 5.24) of [`EFTForCausalLM`]: a transformers cache of the *main* member (the
    base) which carries the caches of the other members along.

    To transformers it is the main member's cache: it has its class (`DynamicCache`, `StaticCache`, `QuantizedCache`), its
    layers and its length. Whatever changes its structure (`reorder_cache`, `crop`, `reset`, `batch_select_indices`,
    `batch_repeat_interleave`, `activate_past_recording`) reaches every member. It may be copied with `copy.deepcopy`, and
    passed on to a later call to continue a conversation.

    It is made by `generate` and by `forward`, or in place out of an empty cache of yours: any cache of transformers that the
    members support may be passed as `cache`.
    """

    main_member: str
    joints: dict[tuple[str, ...], AnyJoint]  # states of members that run as one batch, which their own are views of
    sibling_caches: dict[str, Cache]
    broken: bool  # a change of it was cut off half way
    uneven: bool  # its rows ended at different tokens, and stand in line on the right
    apart: bool  # a member has read another prompt, so that its count is its own
    positions: dict[str, Positions | None]  # of members that were shown pictures; `None` where its columns are others by now
    padded: frozenset[str]  # members with prompts of their own that have padding, which nobody else knows of
    seen_tokens: int  # asked for only where no member's cache counts for all, and such caches are never cropped
    unsettled_tokens: int  # read since the last `crop`
    unread: dict[str, Unread]  # what members that were left out of steps have missed

    @property
    def members(self) -> dict[str, Cache]:
        """The cache of every distinct member, by name; the main member's is this object."""
        return {self.main_member: self, **self.sibling_caches}

    @staticmethod
    def attach(cache: Cache, models: Mapping[str, PreTrainedModel], max_cache_len: int | None = None) -> EFTCache:
        """
        Give `cache` the caches of the other members, in place: the caller keeps the object that they made.

        Args:
            cache (`Cache`): A cache of the main member, that is, of the first of `models`.
            models (`Mapping[str, PreTrainedModel]`): Every distinct member.
            max_cache_len (`int`, *optional*): How many tokens static caches must hold.

        Raises:
            `ValueError`: If the cache is filled but has no states of the other members, is another model's, or a static
                cache of it holds fewer than `max_cache_len` tokens.
        """
        main, *others = models
        if isinstance(cache, EFTCache):
            if list(cache.members) != list(models):
                raise ValueError(
                    f"`cache` holds states of the members {list(cache.members)}, but the model has {list(models)}."
                )
            check_whole(cache)
            for name, sibling in cache.sibling_caches.items():
                check_room(name, sibling, max_cache_len)
            return cache
        if _length(cache) > 0:
            raise ValueError(
                f"`cache` is filled, but has no states of the members {', '.join(map(repr, others))}: it was filled "
                "by another model. Pass an empty cache, or one that this model returned."
            )
        give_layers(cache, models[main].config)
        siblings = {name: sibling_cache(cache, name, models[name], max_cache_len) for name in others}
        cache.__class__ = _eft_class(type(cache))
        attached = cast(EFTCache, cache)
        attached.main_member = main
        attached.sibling_caches = siblings
        attached.joints, attached.broken, attached.uneven, attached.apart = {}, False, False, False
        attached.positions, attached.padded, attached.unread = {}, frozenset(), {}
        attached.seen_tokens = attached.unsettled_tokens = 0
        return attached

    def get_seq_length(self, layer_idx: int = 0) -> int:
        # A pure state-space member counts no tokens: any member that does and reads the same may answer for all.
        if layer_idx == 0 and not counts_tokens(self):
            counting = [name for name, cache in self.sibling_caches.items() if counts_tokens(cache)]
            return self.read_by(counting[0], 0) if counting and not (self.apart and self.seen_tokens) else self.seen_tokens
        return super().get_seq_length(layer_idx)

    def read_by(self, name: str, otherwise: int) -> int:
        """How many tokens a member was given; `otherwise` where its cache does not count them and it was given any."""
        cache, missed = self.members[name], self.unread.get(name)
        if counts_tokens(cache):
            return _length(cache) + (missed.count if missed is not None else 0)
        return otherwise if missed is not None else otherwise * _length(cache)

    def leave_unread(self, name: str, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> None:
        """Have a member that was left out of a step read its tokens, `(rows, n)`, before those of the next step that asks it."""
        missed = self.unread.get(name)
        self.unread[name] = Unread(input_ids, position_ids) if missed is None else missed.followed_by(input_ids, position_ids)

    def joint(self, stack: Stack) -> AnyJoint | None:
        """The states of members that may run as one batch, made where there are none; `None` where there can be none."""
        joint = self.joints.get(stack.names)
        # A graph goes on where members began together, on static caches.
        if joint is None and not torch.compiler.is_compiling() and (joint := stack.joint(self.members)) is not None:
            self.joints[stack.names] = joint
        return joint

    def part(self, stack: Stack) -> None:
        """Members that may run as one batch go on alone."""
        if torch.compiler.is_compiling():  # on static caches, whose rows that are drafted for are brought into line at the end
            return
        joint = self.joints.get(stack.names)
        if joint is not None and not joint.leave():
            del self.joints[stack.names]

    def check_padding(self, masks: Mapping[str, torch.Tensor | None]) -> None:
        r"""
        Note which members read prompts of their own with padding, when the first are read.

        Args:
            masks (`Mapping[str, torch.Tensor or None]`): By member that reads other tokens, which of these are padding.

        Raises:
            `ValueError`: If such a member goes on, and nobody says where its padding was.
        """
        said = {name: mask for name, mask in masks.items() if isinstance(mask, torch.Tensor)}
        if self.get_seq_length() == 0:
            self.padded = frozenset(name for name, mask in said.items() if mask.dim() == 2 and not bool(mask.all()))
        if unsaid := [name for name in self.padded if name not in said]:
            raise ValueError(
                f"`cache` holds a prompt of the member {unsaid[0]!r} with padding, of which nothing says where it was. Give the mask of "
                f"all its tokens, those in the cache and those behind them: `member_inputs={{{unsaid[0]!r}: {{'attention_mask': ...}}}}`."
            )

    def count(self, tokens: int) -> None:
        """Record that all members have read `tokens` more tokens. A number that grows would have every step compiled anew, and
        static caches, which are compiled, are never rolled back."""
        if isinstance(self, StaticCache) and any(counts_tokens(cache) for cache in self.members.values()):
            return
        self.seen_tokens += tokens
        self.unsettled_tokens += tokens

    def can_crop(self, tokens: int, marked: bool = False) -> bool:
        """
        Whether the last `tokens` tokens can be taken back exactly. Sliding windows and convolutions have forgotten what that
        needs, unless they record the past; then they remember back to the last `crop`. Recurrent states cannot, unless they are `marked`:
        put back from a [`~hf_eft.members.roll_back.Mark`] afterwards.
        """
        layers = [layer for cache in self.members.values() for layer in cache.layers]
        return all((marked or not is_recurrent(layer)) and _can_crop(layer, tokens, self.unsettled_tokens) for layer in layers)

    def roll_back(self, drops: Mapping[str, int], shift: torch.Tensor | None, trims: Mapping[str, int]) -> None:
        r"""
        Forget the end of every row, as many tokens as that row's draft was wrong in, and bring the rows into line again: a row that
        forgets more than the others moves to the right, and gets padding on its left. Recurrent states are left as they are.

        Args:
            drops (`Mapping[str, int]`): By member, how many columns *all* rows forget.
            shift (`torch.LongTensor` of shape `(rows,)`, *optional*): How many more each row forgets, and moves by.
            trims (`Mapping[str, int]`): By member, how many columns on the left have become padding in all rows and are dropped.
        """
        with together(self):
            for name, cache in self.members.items():
                for layer in cache.layers:
                    if shift is not None:
                        shift_rows(layer, shift)
                    crop(layer, drops[name])
                    if trims[name]:
                        trim_left(layer, trims[name])
        if shift is not None or any(trims.values()):
            self.positions = dict.fromkeys(self.positions)
        self.unsettled_tokens = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._by_all("reorder_cache", beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        layers = [layer for cache in self.members.values() for layer in cache.layers]
        if tokens_to_remove and any(map(is_recurrent, layers)):
            raise RuntimeError("Recurrent states have forgotten what they read before: they cannot be cropped.")
        with together(self):
            for name, cache in self.members.items():
                missed = self.unread.pop(name, None)
                if missed is not None and (left := missed.without(-tokens_to_remove)) is not None:
                    self.unread[name] = left
                read = -tokens_to_remove if missed is None else max(0, -tokens_to_remove - missed.count)
                for layer in cache.layers:
                    crop(layer, read)
        self.unsettled_tokens = 0

    def reset(self) -> None:
        for cache in self.members.values():
            make_even(cache)
        super().reset()
        self.seen_tokens = self.unsettled_tokens = 0
        for of_a_text in (self.positions, self.unread):
            of_a_text.clear()
        self.joints = {names: joint for names, joint in self.joints.items() if joint.reset()}
        self.padded = frozenset()
        for cache in self.sibling_caches.values():
            cache.reset()
        self.broken = self.uneven = self.apart = False

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._by_all("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._by_all("batch_select_indices", indices)

    def _by_all(self, change: str, how: Any) -> None:
        self.joints = {names: joint for names, joint in self.joints.items() if joint.leave()}
        with together(self):
            getattr(super(), change)(how)
            for cache in self.sibling_caches.values():
                getattr(cache, change)(how)
            for name, each in self.positions.items():
                if each is not None:
                    self.positions[name] = each.repeat(how) if isinstance(how, int) else each.select(how)
            for name, missed in self.unread.items():
                self.unread[name] = missed.repeat(how) if isinstance(how, int) else missed.select(how)

    def activate_past_recording(self) -> None:
        # Recurrent layers are put back instead; some models take what a recording convolution holds for its last states only.
        for layer in (layer for cache in self.members.values() for layer in cache.layers):
            if records(layer):
                layer.activate_past_recording()

    @property
    def is_linear(self) -> list[bool]:
        # transformers takes a cache of recurrent states only for one that does not count its tokens. This one does.
        if not counts_tokens(self):
            return [False] * len(self.layers)
        return [not isinstance(layer, CacheLayerMixin) for layer in self.layers]

    @property
    def is_compileable(self) -> bool:
        # transformers never compiles a plain `DynamicCache`, even one whose (linear) layers all could be.
        if isinstance(self, DynamicCache):
            return False
        return super().is_compileable and all(cache.is_compileable for cache in self.sibling_caches.values())

    @property
    def is_croppable(self) -> bool:
        return super().is_croppable and all(cache.is_croppable for cache in self.sibling_caches.values())


class EFTDynamicCache(EFTCache, DynamicCache):
    """An [`EFTCache`] that grows."""


class EFTStaticCache(EFTCache, StaticCache):
    """An [`EFTCache`] of fixed size."""


class EFTQuantizedCache(EFTCache, QuantizedCache):
    """An [`EFTCache`] that stores quantised states."""


_EFT_CLASSES: dict[type[Cache], type[EFTCache]] = {
    DynamicCache: EFTDynamicCache,
    StaticCache: EFTStaticCache,
    QuantizedCache: EFTQuantizedCache,
}


def _eft_class(kind: type[Cache]) -> type[EFTCache]:
    """The `EFTCache` of a cache class; made on demand for a class that is not one of transformers' own."""
    if kind not in _EFT_CLASSES:
        _EFT_CLASSES[kind] = type(f"EFT{kind.__name__}", (EFTCache, kind), {"__doc__": f"An EFTCache over {kind}."})
    return _EFT_CLASSES[kind]


def _length(cache: Cache) -> int:
    """How many tokens a cache has read, or whether it has read any, for one that does not count."""
    if counts_tokens(cache) or not cache.layers:
        return int(cache.get_seq_length())
    return int(cache.has_previous_state())


def counts_tokens(cache: Cache) -> bool:
    """Whether a cache knows how many tokens it has read: one of recurrent states only does not."""
    # A dynamic cache made without a configuration has no layers before its first update, and then attention layers.
    return not cache.layers or any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


def _can_crop(layer: Any, tokens: int, recorded: int) -> bool:
    if is_recurrent(layer) and not isinstance(layer, CacheLayerMixin):
        return True
    if isinstance(layer, DynamicSlidingWindowLayer) and layer.get_seq_length() < layer.sliding_window:
        return True
    if records(layer):
        return layer.record_past and tokens <= recorded
    return isinstance(layer, DynamicLayer)
