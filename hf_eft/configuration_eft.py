"""`EFTConfig`: the configurations of all members and the recipe that combines them."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .combination import Combination


class EFTConfig(PreTrainedConfig):
    r"""
    Configuration of an [`EFTForCausalLM`].

    The main member's configuration is called `text_config`: everything in `generate` finds it under that name. The others
    are called `<member>_config`.

    Args:
        member_names (`list[str]`, *optional*):
            The members in order; the first is the main member. Defaults to base, tuned and reference.
        shared_members (`dict[str, str]`, *optional*):
            For a member that uses another member's model: that member's name.
        combination (`dict`, *optional*):
            The recipe, as [`Combination.to_dict`] writes it. Defaults to `Combination.emulate()`.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The main member's configuration.
        <member>_config (`dict` or `PreTrainedConfig`):
            The configuration of each further member that has a model of its own.

    Raises:
        `ValueError`: If a configuration is missing, or the dictionary is that of another model type.
    """

    model_type = "eft"

    # `Any`, as a dataclass field may be `None` until `__post_init__` has run
    member_names: Any = None
    shared_members: Any = None
    combination: Any = None
    text_config: Any = None
    tie_word_embeddings: bool = False  # each member ties its own
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # Whoever holds a configuration may look its model up with `AutoModelForCausalLM`: the module registers it.
        from . import modeling_eft  # noqa: F401

        self.shared_members = dict(self.shared_members or {})
        self.combination = self.combination or Combination.emulate().to_dict()
        if self.text_config is None:
            # A configuration without members, as transformers makes one to learn the defaults.
            self.member_names = list(self.member_names or [])
        else:
            self.member_names = list(self.member_names or ["base", "tuned", "reference"])
            for key in self._keys():
                given = self.text_config if key == "text_config" else kwargs.pop(key, None)
                setattr(self, key, _as_config(key, given))
        super().__post_init__(**kwargs)

    def _keys(self) -> dict[str, str]:
        """The attribute of each configuration and the name of its member."""
        own = [name for name in self.member_names if name not in self.shared_members]
        return {("text_config" if i == 0 else f"{name}_config"): name for i, name in enumerate(own)}

    @property
    def sub_configs(self) -> dict[str, type]:
        """What transformers goes through to set the attention implementation and the dtype of every member."""
        return dict.fromkeys(self._keys(), AutoConfig) if getattr(self, "text_config", None) is not None else {}

    @property
    def member_configs(self) -> dict[str, PreTrainedConfig]:
        """The configuration of every member that has a model of its own, by name."""
        return {name: getattr(self, key) for key, name in self._keys().items()}

    @classmethod
    def from_members(
        cls,
        names: tuple[str, ...],
        configs: dict[str, PreTrainedConfig],
        shared_members: dict[str, str],
        combination: Combination,
    ) -> EFTConfig:
        """A configuration which holds copies of the members' own. `names` has every member, `configs` those with a model."""
        main, *others = configs
        return cls(
            member_names=list(names),
            shared_members=shared_members,
            combination=combination.to_dict(),
            text_config=copy.deepcopy(configs[main]),
            **{f"{name}_config": copy.deepcopy(configs[name]) for name in others},
            attn_implementation=configs[main]._attn_implementation,
            dtype=configs[main].dtype,
            **{
                key: getattr(configs[main].get_text_config(decoder=True), key, None)
                for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            },
        )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"This is the configuration of a model of type {found!r}, expected {cls.model_type!r}. To combine plain models, "
                "load each with `AutoModelForCausalLM` and use `EFTForCausalLM.from_models`."
            )
        return super().from_dict(config_dict, **kwargs)


def _as_config(key: str, given: Any) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    if not isinstance(given, dict) or "model_type" not in given:
        raise ValueError(f"`{key}` must be a configuration with a `model_type`, got {given!r}.")
    return AutoConfig.for_model(**given)


AutoConfig.register(EFTConfig.model_type, EFTConfig, exist_ok=True)
