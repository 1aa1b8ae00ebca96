"""`EFTConfig`: the configurations of all members and the recipe that combines them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .files import write
from .files.learnt import KEY, Learnt
from .files.trust import check_description, member_description
from .files.written import readable, scrubbed
from .recipe.combination import Combination

logger = logging.get_logger(__name__)


class EFTConfig(PreTrainedConfig):
    r"""
    Configuration of an [`EFTForCausalLM`].

    The main member's configuration is called `text_config`: everything in `generate` finds it under that name. The others
    are called `<member>_config`. Neither code nor paths nor repositories are read from a member's configuration, and none are written.

    Args:
        member_names (`list[str]`, *optional*):
            The members in order; the first is the main member. Defaults to base, tuned and reference.
        shared_members (`dict[str, str]`, *optional*):
            For a member that uses another member's model: that member's name.
        adapters (`dict[str, str]`, *optional*):
            For a member that is an adapter: the model it is on, another member or a model that is only there for that.
        tokenizer_members (`list[str]`, *optional*):
            The members whose tokenizers say which tokens all have.
        references (`dict[str, dict]`, *optional*):
            Of a recipe folder: `repo_id` and `revision` of each member, in place of configurations.
        vocabulary (`str`, *optional*):
            In what members with different tokenizers are combined, `"tokens"` or `"bytes"`; what that is made of is computed anew from
            their tokenizers.
        combination (`dict`, *optional*):
            The recipe, as [`Combination.to_dict`] writes it. Defaults to `Combination.emulate()`.
        text_config (`dict` or `PreTrainedConfig`, *optional*):
            The main member's configuration.
        <member>_config (`dict` or `PreTrainedConfig`):
            The configuration of each further member that has a model of its own.

    Raises:
        `ValueError`: If a configuration is missing, or the dictionary is that of another model type or has unknown keys.
    """

    model_type = "eft"

    # `Any`, as a dataclass field may be `None` until `__post_init__` has run
    member_names: Any = None
    shared_members: Any = None
    adapters: Any = None
    tokenizer_members: Any = None
    references: Any = None
    vocabulary: Any = None
    combination: Any = None
    text_config: Any = None
    tie_word_embeddings: bool = False  # each member ties its own
    use_cache: bool = True

    @staticmethod
    def register_model() -> None:
        """Have whoever holds a configuration find its model. The package puts what does so in this place."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.register_model()
        self.shared_members = dict(self.shared_members or {})
        self.adapters = dict(self.adapters or {})
        self.tokenizer_members = list(self.tokenizer_members or [])
        self.references = dict(self.references or {})
        self.combination = self.combination or Combination.emulate().to_dict()
        if self.text_config is None:
            # Of a recipe folder, or without members, as transformers makes one to learn the defaults.
            self.member_names = list(self.member_names or [])
        else:
            self.member_names = list(self.member_names or ["base", "tuned", "reference"])
            for key, name in self.keys_of_members().items():
                given = self.text_config if key == "text_config" else kwargs.pop(key, None)
                setattr(self, key, as_config(name, given))
        # In a file keys are in alphabetical order: formulas are shown in the members'.
        coefficients = self.combination["coefficients"]
        ordered = {
            name: coefficients[name] for name in dict.fromkeys([*self.member_names, *coefficients]) if name in coefficients
        }
        self.combination = {**self.combination, "coefficients": ordered}
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """As in transformers: what describes the text, of a main member that sees as well."""
        found = super().get_text_config(*args, **kwargs)
        return found if found is self else found.get_text_config(*args, **kwargs)

    def keys_of_members(self) -> dict[str, str]:
        """The attribute of each configuration and the name of its member, the main member's first."""
        names = dict.fromkeys([*self.member_names, *self.adapters.values()])  # some models are there for their adapters only
        own = [name for name in names if name not in self.shared_members and name not in self.adapters]
        main = self.adapters.get(self.member_names[0], self.member_names[0])
        return {"text_config": main, **{f"{name}_config": name for name in own if name != main}}

    @property
    def sub_configs(self) -> dict[str, type]:
        """What transformers goes through to set the attention implementation and the dtype of every member."""
        return dict.fromkeys(self.keys_of_members(), AutoConfig) if getattr(self, "text_config", None) is not None else {}

    @property
    def member_configs(self) -> dict[str, PreTrainedConfig]:
        """The configuration of every member that has a model of its own, by name."""
        return {name: getattr(self, key) for key, name in self.keys_of_members().items()}

    @classmethod
    def from_members(
        cls,
        names: tuple[str, ...],
        configs: dict[str, PreTrainedConfig],
        combination: Combination,
        shared_members: dict[str, str],
        adapters: dict[str, str] | None = None,
        tokenizer_members: list[str] | None = None,
    ) -> EFTConfig:
        """A configuration which holds copies of the members' own. `names` has every member, `configs` those with a model."""
        main = (adapters or {}).get(names[0], names[0])
        return cls(
            member_names=list(names),
            shared_members=shared_members,
            adapters=adapters,
            tokenizer_members=tokenizer_members,
            combination=combination.to_dict(),
            text_config=copy.deepcopy(configs[main]),
            **{f"{name}_config": copy.deepcopy(config) for name, config in configs.items() if name != main},
            attn_implementation=configs[main]._attn_implementation,
            dtype=configs[main].dtype,
            **{
                key: getattr(configs[main].get_text_config(decoder=True), key, None)
                for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            },
        )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        check_description(config_dict, cls().to_dict())
        recipe = kwargs.pop("combination") if isinstance(kwargs.get("combination"), Combination) else None
        try:
            made = super().from_dict(dict(config_dict), **kwargs)
        except ValueError:
            raise
        except Exception as error:  # transformers checks the fields that it knows, and raises what it likes
            raise ValueError(f"The configuration of the combination cannot be read: {error}") from error
        config = made[0] if isinstance(made, tuple) else made
        if recipe is not None and isinstance(made, tuple):
            return config, {**made[1], "combination": recipe}  # the model takes it: a configuration has no functions
        if recipe is not None:
            config.combination = recipe.to_dict()
        return made

    def to_dict(self) -> dict[str, Any]:
        return scrubbed(super().to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        return scrubbed(super().to_diff_dict())

    def to_json_file(self, json_file_path: Any, use_diff: bool = True) -> None:
        """Write what can be read back. What else somebody set is left out, and a warning names it."""
        found = super().to_diff_dict() if use_diff else super().to_dict()
        description, left_out = readable(found, EFTConfig().to_dict())
        if left_out:
            logger.warning(
                f"Left out of {Path(json_file_path).name}, as the file of a combination may not say it: {', '.join(left_out)}. Set it "
                "anew after loading."
            )
        text = json.dumps(self._encode_special_floats(description), indent=2, sort_keys=True)
        write(Path(json_file_path), text + "\n")


def as_config(name: str, given: Any) -> PreTrainedConfig:
    """
    A member's configuration, from a description without what names code, repositories or kernels.

    Raises:
        `ValueError`: If it is none that transformers knows, or one that a file may not choose.
    """
    if isinstance(given, PreTrainedConfig):
        return given
    description = member_description(name, given)
    if (learnt := description.get(KEY)) is not None:
        Learnt.read(learnt, f"`{KEY}` in the configuration of the member {name!r}")
    try:
        return AutoConfig.for_model(**description)
    except Exception as error:  # each type of model checks its own fields, and raises what it likes
        raise ValueError(f"The configuration of the member {name!r} cannot be read: {error}") from error


AutoConfig.register(EFTConfig.model_type, EFTConfig, exist_ok=True)
