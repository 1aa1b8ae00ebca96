"""
Loading, composing and publishing combinations.

From the members by name, from a saved folder, from a recipe folder that refers to its members by repository and commit, or from a
repository of the Hub with either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.trust import VOCABULARIES
from ..folders.folder import check_target
from ..folders.gather import Token, assemble, load_places, token_for
from ..folders.options import for_each, with_dtype
from ..folders.places import Place
from ..folders.recipe import write_recipe
from ..folders.upload import push
from ..recipe.combination import Coefficient, Combination

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..modeling_eft import EFTForCausalLM

__all__ = ["compose", "load", "load_members", "push"]


def load(
    where: str | Path | Mapping[str, str | Path],
    *,
    alpha: Coefficient | None = None,
    beta: Coefficient | None = None,
    combination: Combination | None = None,
    dtype: Any = "auto",
    device: Any = None,
    member_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
    vocabulary: str | None = None,
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
        alpha (`float`, *optional*): Strength of the behaviour delta, as [`EFTForCausalLM.from_models`] has it.
        beta (`float`, *optional*): Amplification of the up-scaling delta, instead of `alpha`.
        combination ([`Combination`], *optional*): Any other recipe. Without one, the folder's; for members by name, see `alpha`.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): Of all members; `"auto"` is each one's own.
        device (`str`, `int`, `torch.device` or `dict`, *optional*): Where the members go, as a `device_map`; the CPU by default.
        member_kwargs (`Mapping[str, Mapping[str, Any]]`, *optional*):
            By member, arguments of its `from_pretrained` (`dtype`, `device_map`, `quantization_config`, ...), before the common ones.
        vocabulary (`str`, *optional*):
            For members by name whose tokenizers differ, as [`EFTForCausalLM.from_models`] has it. A folder says its own.
        allow_references (`bool`, *optional*, defaults to `False`):
            Whether a recipe folder may have the repositories loaded that it names. They are logged before anything is fetched.
        token (`str`, `bool` or `Mapping[str, str | bool]`, *optional*):
            For what you named; or by repository. Repositories that a recipe names get one only by their own name.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether members may bring code of their own. No file says so.
        progress (`Callable[[str], None]`, *optional*): Told which member is being loaded. Without one, a bar shows it.

    Returns:
        `tuple`: The [`EFTForCausalLM`], and the tokenizers by member name. (Processors of members that see: `model.processors`.)

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
        given, beside = load_members(where, device=device, progress=progress, **options)
        model = assemble(EFTForCausalLM, given, beside, alpha, beta, combination, vocabulary)
        return model, model.tokenizers
    if vocabulary is not None:
        raise ValueError(
            f"`vocabulary` is for members by name, got {vocabulary!r}: a folder says in what its members are combined."
        )
    if alpha is not None or beta is not None:
        combination = Combination.of(alpha, beta, combination, None)
    device_map = {} if device is None else {"device_map": device}
    model = EFTForCausalLM.from_pretrained(
        where, combination=combination, allow_references=allow_references, progress=progress, **device_map, **options
    )
    return model, model.tokenizers


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
        tokenizers of those that have one; a member that sees has its processor there, if one lies beside it.

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
    vocabulary: str | None = None,
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
        combination ([`Combination`], *optional*):
            The recipe. By default emulated fine-tuning with `alpha` = 1, or the strength that the tuned member says it is to be used at.
        vocabulary (`str`, *optional*): For members whose tokenizers differ, as [`EFTForCausalLM.from_models`] has it; with `references`
            `"tokens"` or `"bytes"`.
        references (`bool`, *optional*, defaults to `False`): Whether to refer to the members, each at the commit that it has now.
        revisions (`Mapping[str, str]`, *optional*): By member, the revision of its repository.
        token (`str`, `bool` or `Mapping[str, str | bool]`, *optional*): For these repositories; or by repository. Never written.
        progress (`Callable[[str], None]`, *optional*): Told which member is being loaded or looked up.

    Returns:
        `Path`: The folder.

    Raises:
        `ValueError`: If a member cannot be loaded or referred to, or the folder holds another model.
    """
    from ..modeling_eft import EFTForCausalLM

    folder = Path(folder)
    if references:
        if vocabulary not in (None, *VOCABULARIES):
            raise ValueError(
                f"A recipe folder says one `vocabulary`, {' or '.join(map(repr, VOCABULARIES))}, got {vocabulary!r}. Which fits, "
                "`hf-eft check` says."
            )
        return write_recipe(members, folder, combination, revisions or {}, token, progress, vocabulary)
    check_target(folder)
    given, tokenizers = load_members(members, revisions=revisions, token=token, progress=progress)
    assemble(EFTForCausalLM, given, tokenizers, combination=combination, vocabulary=vocabulary).save_pretrained(folder)
    return folder
