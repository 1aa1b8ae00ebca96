"""The members as parts of the model: looked at, replaced, resized, and told how to attend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration_eft import EFTConfig
from ..recipe.combination import Combination
from .call import refuse_while_running
from .devices import execution_device
from .learnt import say_where_used
from .members import Members
from .parts import Parts

_FLAGS = ("_can_compile_fullgraph", "_supports_flash_attn", "_supports_sdpa", "_supports_flex_attn")


class MemberModels(Mapping[str, PreTrainedModel]):
    """
    Every member's model, by name; members that share a model share the object. Assigning to a name replaces that member, as assigning to
    the model's attribute does.
    """

    def __init__(self, model: EFTMembersMixin) -> None:
        self._model = model

    def __getitem__(self, name: str) -> PreTrainedModel:
        return self._model._members.models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._model._members.models)

    def __len__(self) -> int:
        return len(self._model._members.models)

    def __setitem__(self, name: str, member: Any) -> None:
        if name not in self:
            raise ValueError(
                f"There is no member {name!r} to replace, the members are {list(self)}. Make another model: "
                "`EFTForCausalLM.from_models`."
            )
        self._model._replace_member(name, member)

    def __delitem__(self, name: str) -> None:
        delattr(self._model, name)

    def __repr__(self) -> str:
        return repr(self._model._members.models)


class EFTMembersMixin:
    """The part of [`EFTForCausalLM`] that holds the members. Mixed in before `torch.nn.Module`, whose attributes they are."""

    _members: Members
    _combination: Combination
    config: EFTConfig

    @property
    def members(self) -> MemberModels:
        """Every member's model, by name. Members that share a model share the object. May be assigned to, between calls."""
        return MemberModels(self)

    @property
    def combination(self) -> Combination:
        """The recipe. May be replaced between calls."""
        return self._combination

    @combination.setter
    def combination(self, combination: Combination) -> None:
        combination.check_names(self._members.names)
        refuse_while_running(self, "`combination`")
        self._combination = combination
        self.config.combination = combination.to_dict()

    @property
    def device(self) -> torch.device:
        """Where inputs go: to the main member, whose weights may be offloaded."""
        return execution_device(self._main_model) if "_members" in self.__dict__ else super().device  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        # A member that shares another's model is no submodule of its own: the weights are there once.
        if name in self.__dict__.get("_sharing", ()):
            return self._members.models[name]
        return super().__getattr__(name)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        members = self.__dict__.get("_members")
        if members is not None and name in members.names:
            self._replace_member(name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._members.names:
            raise AttributeError(f"The member {name!r} cannot be left out: the recipe names it. Make a model of the others.")
        super().__delattr__(name)

    def _replace_member(self, name: str, member: Any) -> None:
        """
        Have another model be a member from now on, or an adapter as `from_models` takes it. The other members stay, those included that
        share the model that is replaced.
        """
        if member is self._members.models[name]:
            return
        refuse_while_running(self, f"The member {name!r}")
        if (kind := type(self._members.models[name])) is not type(member) and self.config.vocabulary is not None:
            raise ValueError(
                f"The member {name!r} is read by `vocabulary={self.config.vocabulary!r}` as a {kind.__name__}, got a "
                f"{type(member).__name__}: combine anew, `EFTForCausalLM.from_models(..., vocabulary=...)`."
            )
        if getattr(self, "_cached_continuous_batching_manager", None) is not None:
            raise RuntimeError(
                f"The member {name!r} cannot be replaced while a manager of continuous batching is kept, whose cache is for the members "
                "that are. Call `destroy_cached_continuous_batching_manager()` first."
            )
        given = {each: self._members.given.get(each, model) for each, model in self._members.models.items()} | {name: member}
        members = Members(given, self._combination.coefficients, self._members.vocabulary.tokenizers)
        self._combination.check_names(members.names)
        described = describe(members, self._combination)
        for each in self._members.distinct:
            del self._modules[each]
        self._hold(members)
        of_main = ("dtype", "bos_token_id", "eos_token_id", "pad_token_id", "_attn_implementation_internal")
        describe_anew(self.config, described, of_main if name == members.main else ())

    def _hold(self, members: Members) -> None:
        """Have these be the members."""
        self.__dict__["_sharing"] = frozenset(members.names) - members.distinct.keys()
        self.__dict__["_members"] = members
        for name, model in members.distinct_models.items():
            self.add_module(name, model)
        self.base_model_prefix = members.main
        say_where_used(members)
        for flag in _FLAGS:
            setattr(self, flag, all(getattr(model, flag, False) for model in members.distinct_models.values()))

    # What is asked of the main member --------------------------------------------------------------------------------------

    @property
    def _main_model(self) -> Any:
        return self._members.models[self._members.main]

    def get_input_embeddings(self) -> torch.nn.Module:
        return self._main_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self._main_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self._main_model.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        self._main_model.set_output_embeddings(value)

    def get_decoder(self) -> PreTrainedModel:
        return self._main_model.get_decoder()

    # What reaches all ------------------------------------------------------------------------------------------------------

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """Resize every member's."""
        if self._members.adapted:
            raise ValueError(
                f"The members {self._members.adapted} share their weights with the model under the adapter. Resize that model before the "
                "adapter is put on it."
            )
        for name, model in self._members.distinct_models.items():
            model.resize_token_embeddings(new_num_tokens, *args, **kwargs)
            widened = model.config.get_text_config(decoder=True).vocab_size
            self.config.member_configs[name].get_text_config(decoder=True).vocab_size = widened
        self._members = Members(self._members.models, tokenizers=self._members.vocabulary.tokenizers)
        return self.get_input_embeddings()

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], allow_all_kernels: bool = False) -> None:
        """
        Set how members attend.

        Args:
            attn_implementation (`str` or `dict`):
                For all members; or by member, under its name or under that of its configuration (`"text_config"` is the main member's),
                and under `""` for those that are not named. What is given may be a `dict` in turn, for a member that is composite.
            allow_all_kernels (`bool`, *optional*, defaults to `False`): As in transformers.

        Raises:
            `ValueError`: If a key is none of a member, or a member does not have that implementation.
        """
        asked = dict(attn_implementation) if isinstance(attn_implementation, dict) else {"": attn_implementation}
        rest = asked.pop("", None)
        keys = {name: key for key, name in self.config.keys_of_members().items()}
        of = {alias: name for name in self._members.names for alias in (name, keys.get(name, name))}
        if unknown := asked.keys() - of.keys():
            raise ValueError(
                f"`attn_implementation` names {sorted(unknown)}; how to attend can be said for {sorted(of)}, and under '' for those that "
                "are not named."
            )
        chosen = {self._members.owner[of[alias]]: value for alias, value in asked.items()}
        for name, model in self._members.distinct_models.items():
            if (value := chosen.get(name, rest)) is not None:
                model.set_attn_implementation(value, allow_all_kernels=allow_all_kernels)
        for name, key in keys.items():
            if name in self._members.models:
                _attend_alike(self._members.models[name].config, getattr(self.config, key))
        self.config._attn_implementation_internal = self._main_model.config._attn_implementation

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for stack in self._members.stacks:
            stack.member.model._apply(fn, recurse)  # no submodule: its weights are the members'
        return super()._apply(fn, recurse)  # type: ignore[misc]


def describe_anew(config: EFTConfig, described: EFTConfig, more: Sequence[str] = ()) -> None:
    """Have a configuration say of its members what another one says of them, and what is under the keys of `more`."""
    for key in config.keys_of_members():
        delattr(config, key)
    for key in ("shared_members", "adapters", *more, *described.keys_of_members()):
        setattr(config, key, getattr(described, key))


def _attend_alike(live: Any, kept: Any) -> None:
    """Have a copy of a configuration say what the live one says of attention, for what is nested in it as well."""
    kept._attn_implementation_internal = live._attn_implementation
    for key in live.sub_configs:
        if (inner := getattr(live, key, None)) is not None and getattr(kept, key, None) is not None:
            _attend_alike(inner, getattr(kept, key))


def describe(members: Members, combination: Combination) -> EFTConfig:
    """The configuration of a model of these members."""
    parts = Parts.of(members)
    configs = {name: model.config for name, model in parts.models.items()}
    return EFTConfig.from_members(
        members.names, configs, combination, parts.shared, parts.adapters, list(members.vocabulary.tokenizers)
    )
