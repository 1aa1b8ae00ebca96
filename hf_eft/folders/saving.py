"""`save_pretrained`, `from_pretrained` and `push_to_hub` of [`EFTForCausalLM`]."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..configuration_eft import EFTConfig
from ..recipe.combination import Combination
from . import folder, recipe
from .card import model_card
from .gates import read_recipe
from .options import OF_THE_HUB, for_each, take
from .places import Place, description_of, source_of
from .upload import push


class EFTSavingMixin:
    """What an [`EFTForCausalLM`] does with folders and repositories."""

    _members: Any
    _beneath: Any
    config: Any
    generation_config: Any
    tokenizers: dict[str, Any]

    @property
    def sources(self) -> dict[str, tuple[str, str | None]]:
        """Where each member came from, by name: a repository and its commit, or a folder's name and `None`."""
        sources = {}
        adapters, models = (self._members if self._beneath is None else self._beneath).adapters, self._members.models
        for name, model in (models if self._beneath is None else self._beneath.models).items():
            member = adapters.get(name)
            adapter = member.adapter if member is not None else None
            if adapter is not None:
                sources[name] = source_of(str(adapter)) if isinstance(adapter, Path) else (adapter, None)
            else:
                place, commit = source_of(model.config._name_or_path)
                sources[name] = (place, commit or getattr(model.config, "_commit_hash", None))
        return sources

    def save_pretrained(
        self,
        save_directory: str | Path,
        tokenizers: Mapping[str, Any] | None = None,
        card: bool = True,
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        max_shard_size: int | str = "50GB",
        save_original_format: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        r"""
        Save the combination as one folder, which [`from_pretrained`], `AutoModelForCausalLM` and `pipeline` load: every distinct model
        once, in `members/<name>/`, adapters as adapters.

        Args:
            save_directory (`str` or `Path`): The folder. An earlier combination there is replaced, when all is written.
            tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`, *optional*):
                The members' tokenizers, by name, or the processors that they are part of. Defaults to those that the model keeps
                (`model.tokenizers`, `model.processors`). That of the tuned member, if there is just one, lies at the folder's root:
                prompts are written with it.
            card (`bool`, *optional*, defaults to `True`): Whether to write a model card; a `README.md` that is there is kept.
            is_main_process (`bool`, *optional*, defaults to `True`): Whether this process writes.
            state_dict (`Mapping[str, torch.Tensor]`, *optional*): Weights in place of those that the model has. Not with adapters.
            max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): As in transformers, for each member.
            save_original_format (`bool`, *optional*, defaults to `True`): As in transformers, for each member.
            push_to_hub (`bool`, *optional*, defaults to `False`): Whether to upload the folder afterwards.
            repo_id (`str`, *optional*): Where to; the folder's name by default.
            **kwargs: Passed on to [`hub.push`]: `private`, `token`, `revision`, `commit_message`, `create_pr`.

        Raises:
            `ValueError`: If the folder holds another model, or a member could not be brought back from a folder.
        """
        if kwargs and not push_to_hub:
            raise TypeError(f"`save_pretrained` got arguments that it does not know: {', '.join(map(repr, kwargs))}.")
        if is_main_process:
            target = Path(save_directory)
            folder.write(
                self,  # type: ignore[arg-type]
                target,
                self._own_tokenizers(tokenizers),
                card=self._card(repo_id) if card else None,
                state_dict=state_dict,
                max_shard_size=max_shard_size,
                save_original_format=save_original_format,
            )
            if push_to_hub:
                push(target, repo_id or target.resolve().name, **kwargs)

    def _own_tokenizers(self, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """What is saved beside the members."""
        if self._beneath is None:
            return {**self.tokenizers, **self.processors} if given is None else given  # type: ignore[attr-defined]
        if given is not None:
            raise ValueError(
                f"`tokenizers` cannot be given: the members are combined with `vocabulary={self.config.vocabulary!r}`, which is made of "
                "theirs, and these are saved."
            )
        return self._beneath.tokenizers

    def _card(self, repo_id: str | None) -> str:
        return model_card(self, repo_id=repo_id)  # type: ignore[arg-type]

    def push_to_hub(
        self, repo_id: str, *, tokenizers: Mapping[str, Any] | None = None, max_shard_size: int | str = "50GB", **kwargs: Any
    ) -> Any:
        r"""
        Save the combination and upload it.

        Args:
            repo_id (`str`): The repository; made if there is none.
            tokenizers (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`, *optional*): As in [`save_pretrained`].
            max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): As in transformers.
            **kwargs: Passed on to [`hub.push`]: `private`, `token`, `revision`, `commit_message`, `create_pr`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, tokenizers, max_shard_size=max_shard_size, repo_id=repo_id)
            return push(folder, repo_id, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *model_args: Any,
        config: EFTConfig | None = None,
        member_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        combination: Combination | None = None,
        allow_references: bool = False,
        trust_remote_code: bool | None = False,
        progress: Callable[[str], None] | None = None,
        revision: str | None = None,
        subfolder: str = "",
        output_loading_info: bool = False,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Load a combination: a saved folder, a recipe folder, or a repository of the Hub with either.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): The folder or the repository.
            config ([`EFTConfig`], *optional*): A configuration in place of the folder's.
            member_kwargs (`Mapping[str, Mapping[str, Any]]`, *optional*):
                By member, arguments of its `from_pretrained` (`dtype`, `device_map`, `quantization_config`, ...), before the common ones.
            combination ([`Combination`], *optional*): A recipe in place of the folder's.
            allow_references (`bool`, *optional*, defaults to `False`):
                Whether a recipe folder may have other repositories loaded. They are logged before anything is fetched.
            trust_remote_code (`bool`, *optional*, defaults to `False`):
                Whether the repositories that a recipe refers to may bring code of their own. A saved folder cannot.
            progress (`Callable[[str], None]`, *optional*): Told which member is being loaded.
            revision (`str`, *optional*): Of this repository. It is never that of another.
            subfolder (`str`, *optional*): Where in the folder or the repository the combination lies.
            output_loading_info (`bool`, *optional*, defaults to `False`):
                Whether to return what transformers reports of each member as well, names of weights with the member's name before them.
            generation_config (`GenerationConfig`, *optional*): One in place of the folder's.
            **kwargs: What every member's loading call is told (`dtype`, `device_map`, `max_memory`, `quantization_config`, ...), how the
                Hub is asked (`token`, `cache_dir`, `local_files_only`, `force_download`), and attributes of the configuration
                (`attn_implementation`, `use_cache`, ...). `token` is sent for this repository only; for those that a recipe refers to,
                give a mapping of repositories to tokens.

        Returns:
            [`EFTForCausalLM`]: In evaluation mode; with the reports, if asked for.

        Raises:
            `ValueError`: If the folder is no combination, or decides what a file may not decide, or a member cannot be loaded;
            `TypeError`:
                For unknown arguments.
        """
        if model_args:
            raise TypeError("`from_pretrained` takes one position argument, the folder or the repository.")
        common = take(kwargs)
        tokens = kwargs.get("token")
        hub_options = {key: kwargs.pop(key) for key in OF_THE_HUB if key in kwargs}
        if isinstance(tokens, Mapping):
            hub_options["token"] = tokens.get(str(pretrained_model_name_or_path))
        place = Place.of(pretrained_model_name_or_path, revision, **hub_options)
        found = description_of(place, subfolder)
        if config is None:
            config, kwargs = EFTConfig.from_dict(found, return_unused_kwargs=True, **kwargs)
        config = _configuration(config)
        for key in [key for key in kwargs if hasattr(config, key)]:
            setattr(config, key, kwargs.pop(key))
        for key in ("attn_implementation", "experts_implementation"):
            if key in common:
                setattr(config, f"_{key}", common[key])
            elif config.references and (chosen := getattr(config, f"_{key}")) is not None:
                common[key] = chosen  # no member's configuration is here yet, which would say so
        if kwargs:
            raise TypeError(f"`from_pretrained` got arguments that it does not know: {', '.join(map(repr, kwargs))}.")
        own = member_kwargs or {}
        each = for_each({name: key for key, name in config.keys_of_members().items()}, common, own)
        if config.references:
            if not allow_references:
                recipe.refuse(config, place.name)
            combination = read_recipe(config, place, subfolder) if combination is None else combination
            model, reports = recipe.follow(
                cls, config, place.name, combination, each, own, bool(trust_remote_code), tokens, progress, hub_options
            )
        else:
            fetched = place.folder(subfolder, tqdm_class=common.get("tqdm_class"))
            combination = read_recipe(config, place, subfolder) if combination is None else combination
            model, reports = folder.read(cls, fetched, config, combination, each, progress)
        if generation_config is not None:
            model.generation_config = copy.deepcopy(generation_config)
        model.config.name_or_path = place.name
        return (model, _report(reports)) if output_loading_info else model


def _configuration(given: Any) -> EFTConfig:
    """A copy of the configuration that the caller gave, or says where to find."""
    if isinstance(given, EFTConfig):
        return copy.deepcopy(given)
    if not isinstance(given, (str, Path)):
        raise TypeError(f"`config` must be an `EFTConfig`, or the folder of one, got {type(given).__name__}.")
    return EFTConfig.from_pretrained(given)


def _report(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One report for all members, as transformers makes it for one model."""
    whole: dict[str, Any] = {}
    for name, report in reports.items():
        for key, found in report.items():
            if isinstance(found, (set, list)):
                named = [(f"{name}.{k}" if isinstance(k, str) else (f"{name}.{k[0]}", *k[1:])) for k in found]
                whole[key] = type(found)([*whole.get(key, []), *named])
            elif isinstance(found, Mapping):
                whole.setdefault(key, {}).update({f"{name}.{k}": value for k, value in found.items()})
            elif found:
                whole[key] = found
            else:
                whole.setdefault(key, found)
    return whole
