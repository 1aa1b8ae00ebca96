"""The configuration in a folder that hf_eft saved, read without hf_eft, whose transformers is newer than most vLLMs allow."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from .recipe import Recipe
from .trust import MODEL_TYPE, check_description, member_description

_OF_TRANSFORMERS = frozenset(PreTrainedConfig().to_dict())


class EFTConfig(PreTrainedConfig):
    """
    The members' configurations and the recipe. `text_config` is the main member's: vLLM takes the number of layers and heads, the
    vocabulary and the longest context from it. Every other one is `<name>_config`.
    """

    model_type = MODEL_TYPE

    # `Any`, as a dataclass field may be `None` until `__post_init__` has run
    member_names: Any = None
    shared_members: Any = None
    adapters: Any = None
    tokenizer_members: Any = None
    references: Any = None
    vocabulary: Any = None
    combination: Any = None
    text_config: Any = None
    # Of vLLM's `--hf-overrides`: one strength for all, where the model is told nothing of requests.
    fixed_coefficients: bool = False
    served_by_v2: Any = None  # what `check_engine` found
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.shared_members, self.adapters = dict(self.shared_members or {}), dict(self.adapters or {})
        self.tokenizer_members, self.references = list(self.tokenizer_members or []), dict(self.references or {})
        self.combination = self.combination or {"coefficients": {"base": 1.0, "tuned": 1.0, "reference": -1.0}}
        self.member_names = list(self.member_names or ([] if self.text_config is None else ["base", "tuned", "reference"]))
        if self.references:
            raise ValueError(
                "A recipe folder refers to its members and has no weights of its own, which vLLM looks for: save the combination as one "
                "folder (`hf-eft compose`)."
            )
        if self.vocabulary is not None:
            raise ValueError(
                f"The members have different tokenizers (`vocabulary={self.vocabulary!r}`), and vLLM reads and writes the tokens of one. "
                "Use `hf-eft serve`."
            )
        if self.text_config is not None:
            for key, name in self.keys().items():
                given = self.text_config if key == "text_config" else kwargs.pop(key, None)
                setattr(self, key, _as_config(name, given))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        check_description({key: value for key, value in config_dict.items() if key not in _OF_TRANSFORMERS})
        return super().from_dict(config_dict, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.served_by_v2 is not None:
            from .engine import note

            note(self)

    def keys(self) -> dict[str, str]:
        """The attribute of each configuration that a file has, and whose it is, the main member's first."""
        names = dict.fromkeys([*self.member_names, *self.adapters.values()])  # some models are there for their adapters only
        own = [name for name in names if name not in self.shared_members and name not in self.adapters]
        main = self.adapters.get(self.member_names[0], self.member_names[0])
        return {"text_config": main, **{f"{name}_config": name for name in own if name != main}}

    @property
    def recipe(self) -> Recipe:
        """The folder's recipe, or what `--hf-overrides` puts in its place."""
        return Recipe(
            tuple(self.member_names), self.shared_members, self.combination["coefficients"], self.combination.get("truncation")
        )

    def member_configs(self) -> dict[str, PreTrainedConfig]:
        """The configuration of each model that runs, by name; an adapter runs as a model of its own, merged."""
        keys = {name: key for key, name in self.keys().items()}
        return {name: getattr(self, keys[self.adapters.get(name, name)]) for name in self.recipe.models}


def _as_config(name: str, given: Any) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    description = member_description(name, given)
    try:
        return AutoConfig.for_model(**description)
    except Exception as error:  # each type of model checks its own fields, and raises what it likes
        raise ValueError(f"The configuration of the member {name!r} cannot be read: {error}") from error
