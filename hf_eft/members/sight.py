"""What a member sees of a call: pictures beside its prompt, encoded once, and the positions that they give to its tokens."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache

from ..prompts.pictures import DESCRIBING, is_pixels, take_pictures
from .cache import EFTCache
from .member import Member
from .members import Members
from .positions import Positions
from .releases import CACHE
from .trial import check_trial

_POSITIONS = "position_ids"


class Sight:
    r"""
    A member's prompt with its pictures. What its model makes of them for `generate` is made here in the same way, by the methods of the
    model itself, except that nothing is left on the model: other calls of it, and other members that it serves as, go on undisturbed.

    Args:
        member ([`Member`]): Whose sight it is.
        input_ids (`torch.LongTensor` of shape `(prompts, length)`): The prompts.
        attention_mask (`torch.LongTensor` of shape `(prompts, length)`, *optional*): 0 where a token is padding.
        given (`Mapping[str, Any]`): Pixels and what describes them, by the names that the model takes.
        expand (`int`, *optional*, defaults to 1): How many rows there are of each prompt, next to each other.
        ahead (`bool`, *optional*, defaults to `True`): Whether pictures are encoded now, for all steps that may need them.

    Raises:
        `ValueError`: If the model does not take what is given, or does with it what cannot be followed row by row.
    """

    def __init__(
        self,
        member: Member,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        given: Mapping[str, Any],
        expand: int = 1,
        ahead: bool = True,
    ) -> None:
        self.member, self.length, self.expand = member, input_ids.shape[1], expand
        self._model = apart(member.model)
        _check(member, given)
        device = member.device
        ids = input_ids.to(device)
        known = {"attention_mask": attention_mask, **{n: v for n, v in given.items() if n in member.accepts}}
        kwargs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in known.items()}
        kwargs |= {name: _readable(self._model, value) for name, value in kwargs.items() if is_pixels(name)}
        if _POSITIONS in member.accepts:
            mask = torch.ones_like(ids) if attention_mask is None else kwargs["attention_mask"]  # without one, no rows are made
            kwargs[_POSITIONS] = self._model._prepare_position_ids_for_generation(ids, {**kwargs, "attention_mask": mask})
        if ahead:
            kwargs = self._model._maybe_prepare_encoder_kwargs_for_generation(ids, kwargs, "input_ids", None)
        if expand > 1 and not _told_apart(self._model, kwargs.get("mm_encoder_outputs")):
            raise ValueError(
                f"{_who(member)} encodes its pictures with the prompt, or all in one, and which of them belong to which prompt is not "
                "known here: decode without beams and with one returned sequence."
            )
        _, kwargs = self._model._expand_inputs_for_generation(expand_size=expand, input_ids=ids, **kwargs)
        self._kwargs: dict[str, Any] = kwargs

    @classmethod
    def continued(cls, member: Member, attention_mask: torch.Tensor | None, positions: Positions, length: int) -> Sight:
        """That of a text of `length` tokens, of whose beginning, pictures included, a cache holds the states."""
        sight = cls.__new__(cls)
        sight.member, sight.length, sight.expand, sight._model = member, length, 1, apart(member.model)
        sight._kwargs = {"attention_mask": attention_mask, _POSITIONS: positions.up_to(length, attention_mask)}
        return sight

    @property
    def positions(self) -> Positions | None:
        """Those of the prompt; `None` if the model is told none."""
        read = self._kwargs.get(_POSITIONS)
        return None if read is None else Positions(read)

    def inputs(
        self, input_ids: torch.Tensor, read: int, fresh: int, cache: Any, *, first: bool, use_cache: bool = True
    ) -> dict[str, Any]:
        r"""
        What the member is given in a step, in place of what all are given.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): The tokens, those that are read now last.
            read (`int`): How many it has read before.
            fresh (`int`): How many it reads now.
            cache (`Cache`, *optional*): Its cache.
            first (`bool`): Whether this is the step that shows the pictures.
            use_cache (`bool`, *optional*, defaults to `True`): Whether there are to be others that need not.
        """
        more, kwargs = read + fresh - self.length, dict(self._kwargs)
        if more:
            kwargs = self._model._update_model_kwargs_for_generation({}, kwargs, num_new_tokens=more)
        check_trial(
            self.member.name, self.member.model, self.member.device, kwargs.get("attention_mask"), cached=cache is not None
        )
        prepared = self._model.prepare_inputs_for_generation(
            input_ids.to(self.member.device), next_sequence_length=fresh, is_first_iteration=first,
            use_cache=use_cache, **{CACHE: cache}, **kwargs,
        )  # fmt: skip
        # (Where the model makes positions itself, it is told none: those of the others would not be its own. Which logits are made is
        # for who asks.)
        ours = (CACHE, "use_cache", "logits_to_keep")
        kept = {name: value for name, value in prepared.items() if name not in ours and value is not None}
        return {"attention_mask": None, _POSITIONS: None, **kept}

    def next_positions(self, rows: int) -> torch.Tensor | None:
        """The positions, `(..., rows, 1)`, of the token that follows the prompts; `None` if the model is told none."""
        token = torch.zeros(rows, 1, dtype=torch.long, device=self.member.device)
        found: torch.Tensor | None = self.inputs(token, self.length, 1, None, first=False)[_POSITIONS]
        return found

    def shows(self, other: Sight | None) -> bool:
        """Whether another sight is of the same prompts and pictures, in the same rows."""
        if other is None or self._kwargs.keys() != other._kwargs.keys() or self.length != other.length:
            return False
        return all(_same(value, other._kwargs[name]) for name, value in self._kwargs.items())


def sights_of(
    members: Members,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    pictures: Mapping[str, Any],
    own: Mapping[str, tuple[torch.Tensor, torch.Tensor | None, Mapping[str, Any]]],
    **options: Any,
) -> dict[str, Sight]:
    r"""
    What every member sees of a call.

    Args:
        members ([`Members`]): The members.
        input_ids (`torch.LongTensor` of shape `(prompts, length)`): The prompts of the call.
        attention_mask (`torch.LongTensor` of shape `(prompts, length)`, *optional*): 0 where a token of them is padding.
        pictures (`Mapping[str, Any]`): The pictures of the call.
        own (`Mapping[str, tuple]`): By member, prompts, mask and pictures of its own in place of these. May be without pictures.
        **options: Those of [`Sight`].

    Returns:
        `dict[str, Sight]`: By distinct member, of those that are shown anything.
    """
    given = {name: own.get(name, (input_ids, attention_mask, pictures)) for name in members.distinct}
    return {name: Sight(members.distinct[name], *each, **options) for name, each in given.items() if each[2]}


def in_forward(
    members: Members,
    input_ids: torch.Tensor,
    attention_mask: Any,
    pictures: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Any]],
    cache: EFTCache | None,
    use_cache: bool,
) -> dict[str, dict[str, Any]]:
    r"""
    What members read in a call of `forward`, where it is not what all read.

    Args:
        members ([`Members`]): The members.
        input_ids (`torch.LongTensor` of shape `(rows, length)`): What all read.
        attention_mask (`torch.Tensor` of shape `(rows, cached + length)`, *optional*): 0 where a token is padding.
        pictures (`Mapping[str, Any]`): What all are shown.
        given (`Mapping[str, Mapping[str, Any]]`): By member, what it is given instead; with positions among it, taken as it is.
        cache ([`EFTCache`], *optional*): The states of the tokens before.
        use_cache (`bool`): Whether states are kept.
    """
    own = {name: dict(inputs) for name, inputs in given.items()}
    shown = {
        name: (inputs["input_ids"], inputs.get("attention_mask"), take_pictures(inputs))
        for name, inputs in own.items()
        if _POSITIONS not in inputs and "input_ids" in inputs
    }
    plain: dict[str, Any] = {name: (input_ids, None, {}) for name in own.keys() - shown.keys()}
    if pictures or any(each[2] for each in shown.values()):
        refuse_behind(cache)
        sights = sights_of(members, input_ids, attention_mask, pictures, {**plain, **shown}, ahead=False)
        for name, sight in sights.items():
            states = cache.members[name] if cache is not None else None
            inputs = sight.inputs(shown.get(name, (input_ids,))[0], 0, sight.length, states, first=True, use_cache=use_cache)
            own[name] = inputs if name in shown else {key: value for key, value in inputs.items() if key != "input_ids"}
        remember(cache, sights)
    elif cache is not None and cache.positions.keys() - own.keys():
        read = {
            name: cache.read_by(name, int(cache.get_seq_length())) for name in cache.positions
        }  # prompts of their own are as long as they are
        rows, count = input_ids.shape
        longer: dict[str, Any] = {
            name: (input_ids.new_empty(rows, n + count), None, {}) for name, n in read.items() if n != cache.get_seq_length()
        }
        for name, sight in seen_before(cache, members, longer, attention_mask, int(cache.get_seq_length()) + count).items():
            if name not in own:
                inputs = sight.inputs(input_ids, read[name], count, cache.members[name], first=False)
                own[name] = {key: value for key, value in inputs.items() if key != "input_ids"}
    return own


def refuse_behind(cache: Cache | None) -> None:
    """Raise if pictures would be shown behind what a cache holds."""
    if cache is not None and (held := int(cache.get_seq_length())):
        raise ValueError(
            f"Pictures are shown with a whole prompt, and `{CACHE}` holds {held} tokens before this one. Leave the cache out; or go on "
            "from it with text alone: what was shown before is in it."
        )


def remember(cache: Cache | None, sights: Mapping[str, Sight]) -> None:
    """Have a cache know where its tokens stand for members that were shown pictures, for whoever goes on from it."""
    if isinstance(cache, EFTCache):
        cache.positions = {name: sight.positions for name, sight in sights.items() if sight.positions is not None}


def seen_before(
    cache: EFTCache,
    members: Members,
    own: Mapping[str, tuple[torch.Tensor, torch.Tensor | None, Mapping[str, Any]]],
    attention_mask: torch.Tensor | None,
    length: int,
) -> dict[str, Sight]:
    r"""
    What members see of a call that goes on from a cache, which holds the states of pictures.

    Args:
        cache ([`EFTCache`]): The cache.
        members ([`Members`]): The members.
        own (`Mapping[str, tuple]`): As in [`sights_of`].
        attention_mask (`torch.LongTensor` of shape `(rows, length)`, *optional*): 0 where a token is padding.
        length (`int`): How long the text is, what the cache holds included.

    Raises:
        `ValueError`: If the cache does not hold the pictures at the places where they were read.
    """
    sights = {}
    for name, positions in cache.positions.items():
        if positions is None or cache.read_by(name, positions.length) < positions.length:
            raise ValueError(
                f"`{CACHE}` does not hold the prompt with pictures of the member {name!r} as it was read: its rows were moved, by drafts "
                "that not all rows kept, or it was cropped. Leave it out, and give the pictures again."
            )
        mask, total = (own[name][1], own[name][0].shape[1]) if name in own else (attention_mask, length)
        sights[name] = Sight.continued(members.distinct[name], mask, positions, total)
    return sights


def apart(model: PreTrainedModel) -> Any:
    """
    The same model, what it keeps of a call (`rope_deltas` of the models with positions on several axes, and their like) its own: a copy of
    itself and of its trunk, without their weights.
    """
    other = copy.copy(model)
    other.__dict__["_modules"] = dict(model._modules)
    trunk = model._modules.get(model.base_model_prefix)
    if trunk is not None:
        other._modules[model.base_model_prefix] = copy.copy(trunk)
    return other


def _check(member: Member, given: Mapping[str, Any]) -> None:
    """Raise if a model would not see what it is given, or sees it in a way of its own."""
    who = _who(member)
    if unseen := [name for name in given if name not in member.accepts and name not in DESCRIBING]:
        raise ValueError(
            f"{who} does not take {', '.join(f'`{name}`' for name in unseen)}, which other members are shown. Give it a prompt of its own "
            f"in its place, a text or its own pictures: `member_inputs={{{member.name!r}: {{'input_ids': ..., ...}}}}`."
        )
    model = type(member.model)
    follows = inspect.signature(model._update_model_kwargs_for_generation).parameters
    if model.generate is not GenerationMixin.generate or "num_new_tokens" not in follows:
        raise ValueError(
            f"{who} generates from pictures in a way of its own, which cannot be followed beside other members. Give a model that is run "
            "by the `generate` of transformers as it is."
        )


def _who(member: Member) -> str:
    return f"The member {member.name!r} ({type(member.model).__name__})"


def _told_apart(model: PreTrainedModel, encoded: Any) -> bool:
    """Whether a model knows of encoded pictures and films which of them belong to which prompt: `generate` counts the features of each."""
    if encoded is None:
        return False
    own, usual = (getattr(kind, "_expand_multimodal_outputs", None) for kind in (type(model), GenerationMixin))
    if own is not usual:  # it has other features, and counts them
        return True
    return all(getattr(each, "pooler_output", None) is not None for each in encoded.values() if each is not None)


def _readable(model: PreTrainedModel, pixels: Any) -> Any:
    """Pixels in a dtype that a model has: members of several dtypes are given the same, and not every model casts them itself."""
    if not isinstance(pixels, torch.Tensor) or not pixels.is_floating_point() or pixels.dtype == model.dtype:
        return pixels
    # (One that has both casts where it needs to.)
    return pixels if any(weight.dtype == pixels.dtype for weight in model.parameters()) else pixels.to(model.dtype)


def _same(mine: Any, other: Any) -> bool:
    if isinstance(mine, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(mine, other)
    if isinstance(mine, Mapping) and isinstance(other, Mapping):
        return mine.keys() == other.keys() and all(_same(value, other[key]) for key, value in mine.items())
    if isinstance(mine, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(mine) == len(other) and all(map(_same, mine, other))
    return bool(type(mine) is type(other) and mine == other)
