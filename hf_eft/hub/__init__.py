"""
Loading, composing and publishing combinations: from the members by name, from a saved folder, from a recipe folder that refers to
its members by repository and commit, or from a repository of the Hub with either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.trust import ADAPTER, CONFIG, MODEL_TYPE, check_code, check_tree, check_weights, read_json
from ..folders.options import for_each, with_dtype
from ..folders.places import Place, description_of
from ..recipe.combination import BASE, REFERENCE, TUNED, Coefficient, Combination

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..modeling_eft import EFTForCausalLM

Token = str | bool | Mapping[str, str | bool] | None


def load(
    where: str | Path | Mapping[str, str | Path],
    *,
    alpha: Coefficient | None = None,
    beta: Coefficient | None = None,
    combination: Combination | None = None,
    dtype: Any = "auto",
    device: Any = None,
    member_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    allow_references: bool = False,
    token: Token = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[EFTForCausalLM, dict[str, PreTrainedTokenizerBase]]:
    r"""
    Load a combination and its members' tokenizers.

    Args:
        where (`str`, `Path` or `Mapping[str, str | Path]`):
            A saved folder, a recipe folder, a repository of the Hub with either; or the members' folders and repositories by name.
        alpha (`float`, *optional*): Strength of the behaviour delta.
        beta (`float`, *optional*): Amplification of the up-scaling delta, instead of `alpha`.
        combination ([`Combination`], *optional*): Any other recipe. Without one, the folder's; for members by name, `alpha` = 1.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): Of all members; `"auto"` is each one's own.
        device (`str`, `int`, `torch.device` or `dict`, *optional*): Where the members go, as a `device_map`; the CPU by default.
        member_kwargs (`Mapping[str, Mapping[str, Any]]`, *optional*):
            By member, arguments of its `from_pretrained` (`dtype`, `device_map`, `quantization_config`, ...), before the common ones.
        allow_references (`bool`, *optional*, defaults to `False`):
            Whether a recipe folder may have the repositories loaded that it names. They are logged before anything is fetched.
        token (`str`, `bool` or `Mapping[str, str | bool]`, *optional*):
            For what you named; or by repository. Repositories that a recipe names get one only by their own name.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether members may bring code of their own. No file says so.
        progress (`Callable[[str], None]`, *optional*): Told which member is being loaded. Without one, a bar shows it.

    Returns:
        `tuple`: The [`EFTForCausalLM`], and the tokenizers by member name.

    Raises:
        `ValueError`: If this is no combination, a file decides what it may not decide, or a member cannot be loaded; the member is named.

    Example:

    ```python
    >>> from hf_eft import hub, tiny

    >>> model, tokenizers = hub.load({name: tiny.path(name) for name in ("base", "tuned", "reference")}, alpha=0.8)
    >>> print(model.combination)
    base + 0.8 tuned - 0.8 reference
    ```
    """
    from ..modeling_eft import EFTForCausalLM

    options = {"dtype": dtype, "member_kwargs": member_kwargs, "token": token, "trust_remote_code": trust_remote_code}
    if isinstance(where, Mapping):
        given, tokenizers = load_members(where, device=device, progress=progress, **options)
        return assemble(given, tokenizers, alpha, beta, combination), tokenizers
    if alpha is not None or beta is not None:
        combination = Combination.of(alpha, beta, combination, None)
    device_map = {} if device is None else {"device_map": device}
    model = EFTForCausalLM.from_pretrained(
        where, combination=combination, allow_references=allow_references, progress=progress, **device_map, **options
    )
    return model, dict(model.tokenizers)


def load_members(
    members: Mapping[str, str | Path],
    *,
    dtype: Any = "auto",
    device: Any = None,
    member_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    revisions: Mapping[str, str] | None = None,
    token: Token = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, PreTrainedModel | str], dict[str, PreTrainedTokenizerBase]]:
    r"""
    Load members from where each lies, from safetensors only.

    Args:
        members (`Mapping[str, str | Path]`): By member, a folder or a repository. The same place, given twice, is loaded once.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): As in [`load`].
        device (`str`, `int`, `torch.device` or `dict`, *optional*): As in [`load`].
        member_kwargs (`Mapping[str, Mapping[str, Any]]`, *optional*): As in [`load`].
        revisions (`Mapping[str, str]`, *optional*): By member, the revision of its repository.
        token (`str`, `bool` or `Mapping[str, str | bool]`, *optional*): For these repositories; or by repository.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether these repositories may bring code of their own.
        progress (`Callable[[str], None]`, *optional*): Told which member is being loaded.

    Returns:
        `tuple`: By member, the model, or the folder of an adapter, for [`EFTForCausalLM.from_models`] to put on its model; and the
        tokenizers of those that have one.

    Raises:
        `ValueError`: If a member cannot be loaded, is a combination itself or has no safetensors; the member is named.
    """
    revisions, own = revisions or {}, member_kwargs or {}
    if unknown := set(revisions) - set(members):
        raise ValueError(f"`revisions` names {sorted(unknown)}, but the members are {list(members)}.")
    common = with_dtype({"dtype": dtype, **({} if device is None else {"device_map": device})})
    each = for_each({name: f"{name}_config" for name in members}, common, own)
    places = {}
    for name, where in members.items():
        try:
            places[name] = Place.of(where, revisions.get(name), token=token_for(str(where), token))
        except (OSError, ValueError) as error:
            raise ValueError(f"The member {name!r} cannot be found: {error}") from error
    models, tokenizers, _ = load_places(places, each, trust_remote_code, progress, own)
    return models, tokenizers


def compose(
    members: Mapping[str, str | Path],
    folder: str | Path,
    *,
    combination: Combination | None = None,
    references: bool = False,
    revisions: Mapping[str, str] | None = None,
    token: Token = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    r"""
    Make a folder of members and a recipe: a saved folder with the weights, or a recipe folder of a few kB that refers to them.

    Args:
        members (`Mapping[str, str | Path]`): By member, a folder or a repository; with `references`, repositories.
        folder (`str` or `Path`): Where to.
        combination ([`Combination`], *optional*): The recipe; emulated fine-tuning with `alpha` = 1 by default.
        references (`bool`, *optional*, defaults to `False`): Whether to refer to the members, each at the commit that it has now.
        revisions (`Mapping[str, str]`, *optional*): By member, the revision of its repository.
        token (`str`, `bool` or `Mapping[str, str | bool]`, *optional*): For these repositories; or by repository. Never written.
        progress (`Callable[[str], None]`, *optional*): Told which member is being loaded or looked up.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: If a member cannot be loaded or referred to, or the folder holds another model.
    """
    from ..folders.folder import check_target
    from ..folders.recipe import write_recipe

    folder = Path(folder)
    if references:
        return write_recipe(members, folder, combination or Combination.emulate(), revisions or {}, token, progress)
    check_target(folder)
    given, tokenizers = load_members(members, revisions=revisions, token=token, progress=progress)
    assemble(given, tokenizers, combination=combination).save_pretrained(folder)
    return folder


def push(
    folder: str | Path,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> Any:
    r"""
    Upload a saved folder or a recipe folder: its configurations, tokenizers, safetensors and card, and nothing else that lies there.

    Args:
        folder (`str` or `Path`): The folder.
        repo_id (`str`): The repository; made if there is none. Members that are there and no longer in the folder are deleted.
        token (`str` or `bool`, *optional*): For this repository; the stored one by default.
        private (`bool`, *optional*): Whether a new repository is private.
        revision (`str`, *optional*): The branch.
        commit_message (`str`, *optional*): Defaults to naming what is uploaded.
        create_pr (`bool`, *optional*, defaults to `False`): Whether to open a pull request.

    Returns:
        `huggingface_hub.CommitInfo`: The commit.

    Raises:
        `ValueError`: If the folder is no combination, or has files that lie elsewhere.
    """
    from huggingface_hub import HfApi

    from ..folders.places import READ

    place = Place.of(Path(folder))
    check_tree(Path(folder))
    recipe = bool(description_of(place).get("references"))
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    return api.upload_folder(
        folder_path=folder,
        repo_id=repo_id,
        revision=revision,
        commit_message=commit_message or f"Upload {'a recipe' if recipe else 'a combination'} of hf_eft",
        create_pr=create_pr,
        allow_patterns=[*READ, "README.md"],
        delete_patterns="members/*",
    )


def load_places(
    places: Mapping[str, Place],
    each: Mapping[str, Mapping[str, Any]],
    trust_remote_code: bool,
    progress: Callable[[str], None] | None,
    own: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The models (or folders of adapters), the tokenizers and the reports of members from their places. Those of `own` were told more."""
    from ..folders.loading import announced

    loaded: dict[Any, tuple[Any, Any, Any]] = {}
    models, tokenizers, reports = {}, {}, {}
    for name in announced({name: place.name for name, place in places.items()}, progress):
        place, options = places[name], each.get(name, {})
        key = (place, repr(sorted(options.items(), key=lambda item: item[0])))
        if key not in loaded:
            if name in own and look(name, place) is None:
                raise ValueError(
                    f"`member_kwargs` has arguments for the member {name!r}, which is an adapter: it is as the model that it is put on."
                )
            loaded[key] = _load_one(name, place, options, trust_remote_code)
            if loaded[key][2] is not None:
                reports[name] = loaded[key][2]
        models[name], tokenizer = loaded[key][:2]
        if tokenizer is not None:
            tokenizers[name] = tokenizer
    return models, tokenizers, reports


def look(name: str, place: Place) -> dict[str, Any] | None:
    """
    A member's configuration as it lies there, `None` for an adapter.

    Raises:
        `ValueError`: If there is neither, or it is a combination.
    """
    try:
        adapter, path = place.file(ADAPTER), place.file(CONFIG)
    except OSError as error:
        raise ValueError(f"The member {name!r} cannot be found in {place.name!r}: {error}") from error
    if adapter is not None:
        return None
    if path is None:
        raise ValueError(f"The member {name!r} has no {CONFIG} in {place.name!r}: it is no model of transformers.")
    description = read_json(path)
    if description.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"The member {name!r} in {place.name!r} is another combination: it is refused. Give a causal language model."
        )
    return description


def _load_one(name: str, place: Place, options: Mapping[str, Any], trust_remote_code: bool) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig

    from ..configuration_eft import as_config
    from ..folders.loading import load_model, load_tokenizer

    remote: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if trust_remote_code and place.commit:
        remote["code_revision"] = place.commit
    description = look(name, place)
    tokenizer = None
    if place.file("tokenizer_config.json") is not None:
        tokenizer = load_tokenizer(name, place.name, **place.where, **remote)
    if description is None:
        return place.folder(patterns=(ADAPTER, "adapter_model.safetensors")), tokenizer, None
    if trust_remote_code and "auto_map" in description:
        check_code(name, description)
        config = AutoConfig.from_pretrained(place.name, **place.where, **remote)
    else:
        try:
            config, remote = as_config(name, description), {"trust_remote_code": False}
        except (ValueError, TypeError) as error:
            hint = (
                " It has code of its own, which runs with `trust_remote_code=True` only." if "auto_map" in description else ""
            )
            raise ValueError(f"The member {name!r} in {place.name!r} cannot be loaded: {error}{hint}") from error
    if place.commit is None:
        check_weights(name, Path(place.name))
    model, report = load_model(name, place.name, config, **place.where, **remote, **options)
    if place.commit is not None:
        model.config._name_or_path, model.config._commit_hash = place.source
    return model, tokenizer, report


def assemble(
    given: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    alpha: Coefficient | None = None,
    beta: Coefficient | None = None,
    combination: Combination | None = None,
) -> EFTForCausalLM:
    """The combination of loaded members, by name."""
    from ..modeling_eft import EFTForCausalLM

    tuned = {name: model for name, model in given.items() if name not in (BASE, REFERENCE)}
    return EFTForCausalLM.from_models(
        given.get(BASE),
        tuned=tuned[TUNED] if set(tuned) == {TUNED} else tuned or None,
        reference=given.get(REFERENCE),
        alpha=alpha,
        beta=beta,
        combination=combination,
        tokenizers=tokenizers,
    )


def token_for(repo_id: str, token: Token) -> str | bool | None:
    """The token for a repository that the caller named."""
    return token.get(repo_id) if isinstance(token, Mapping) else token
