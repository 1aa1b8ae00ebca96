"""What a folder may decide: the recipe, and which of vLLM's own models its members are. Never code, nor a place elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL_TYPE = "eft"
MAX_MEMBERS = 64
MEMBERS = "members"

# The keys of a combination's configuration, beside `<member>_config` and those that transformers puts into every configuration.
KEYS = frozenset(
    "model_type architectures transformers_version dtype member_names shared_members adapters tokenizer_members references "
    "vocabulary combination text_config tie_word_embeddings use_cache bos_token_id eos_token_id pad_token_id".split()
)
# What a member's configuration loses, at any depth: names of code, of repositories and of files, and whatever chooses a kernel.
LOST = frozenset(
    "auto_map trust_remote_code code_revision custom_pipelines _name_or_path name_or_path _commit_hash attn_implementation "
    "_attn_implementation _attn_implementation_internal experts_implementation _experts_implementation "
    "_experts_implementation_internal use_kernels kernel_config fusion_config transformers_weights configuration_files "
    "distributed_config base_model_tp_plan base_model_pp_plan base_model_fsdp_plan _auto_class".split()
)
_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEEPEST = 16


def check_description(description: Mapping[str, Any]) -> None:
    r"""
    Check a combination's configuration as it was read from a file.

    Raises:
        `ValueError`: For a key that is not read, a name that is none, or a reference that can move.
    """
    names = _names(description.get("member_names") or ["base", "tuned", "reference"])
    adapters, shared = (_links(key, description.get(key), names) for key in ("adapters", "shared_members"))
    _names([*dict.fromkeys(adapters.values())])
    if wrong := [name for name, owner in shared.items() if owner not in names or owner in shared or owner in adapters]:
        raise ValueError(f"`shared_members` must name a member with a model of its own for each, got {wrong} with {shared}.")
    if wrong := [name for name, trunk in adapters.items() if trunk in adapters or trunk in shared or name in shared]:
        raise ValueError(f"`adapters` must name a model with weights of its own for each, got {wrong} with {adapters}.")
    configs = {f"{name}_config" for name in (*names, *adapters.values())}
    if unknown := sorted(key for key in description if key not in KEYS | configs):
        raise ValueError(f"The configuration of the combination has keys that are not read: {', '.join(map(repr, unknown))}.")
    recipe = description.get("combination")
    if recipe is not None and not (isinstance(recipe, Mapping) and isinstance(recipe.get("coefficients"), Mapping)):
        raise ValueError(f"`combination` must have `coefficients` by member, got {recipe!r:.200}.")
    if unknown := sorted(set(recipe or ()) - {"coefficients", "truncation"}):
        raise ValueError(f"The recipe has keys that are not read: {', '.join(map(repr, unknown))}.")
    references = description.get("references") or {}
    if not isinstance(references, Mapping) or (references and set(references) != set(names)):
        raise ValueError(f"`references` must have a repository for each of {names}, got {references!r:.200}.")
    for name, reference in references.items():
        check_reference(name, reference)


def check_reference(name: str, reference: Any) -> tuple[str, str]:
    """The repository and the commit that a recipe names for a member; a `ValueError` for anything else."""
    if not isinstance(reference, Mapping) or set(reference) != {"repo_id", "revision"}:
        raise ValueError(
            f"The reference of the member {name!r} must have `repo_id` and `revision`, nothing else; got {reference!r:.200}."
        )
    repository, revision = reference["repo_id"], reference["revision"]
    if not isinstance(repository, str) or not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise ValueError(f"The reference of the member {name!r} must name a repository of the Hub, got {repository!r:.200}.")
    if not isinstance(revision, str) or not _COMMIT.fullmatch(revision):
        raise ValueError(
            f"The reference of the member {name!r} to {repository!r} can move: its revision is {revision!r:.80}, expected a commit of 40 "
            "hexadecimal digits."
        )
    return repository, revision


def member_description(name: str, description: Any, depth: int = 0) -> dict[str, Any]:
    """A member's configuration without what names code, repositories or kernels, at any depth."""
    if depth > _DEEPEST:
        raise ValueError(f"The configuration of the member {name!r} is nested more than {_DEEPEST} deep: it is refused.")
    if depth == 0 and (not isinstance(description, Mapping) or not isinstance(description.get("model_type"), str)):
        raise ValueError(f"The member {name!r} must have a configuration with a `model_type`, got {description!r:.200}.")
    if description.get("model_type") == MODEL_TYPE:
        raise ValueError(f"The member {name!r} is another combination: it is refused. Give a causal language model.")
    return {key: _clean(name, value, depth + 1) for key, value in description.items() if key not in LOST}


def check_folder(folder: Path) -> None:
    """Raise a `ValueError` if something in a folder lies elsewhere, or weights in it are no safetensors."""
    root = _root_of(folder)
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{str(path.relative_to(folder))!r} leads out of the folder {str(folder)!r}: it is refused.")


def check_weights(name: str, folder: Path) -> None:
    """Raise a `ValueError` if a member's folder has no safetensors."""
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"The member {name!r} has no safetensors in {str(folder)!r}. Save it anew with `save_pretrained`.")


def _root_of(folder: Path) -> Path:
    """Where the files of a folder may lie: in it, or, if the Hub's cache keeps it, among that repository's files."""
    resolved = folder.resolve()
    for parent in [resolved, *resolved.parents]:
        repository = parent.parent.parent
        if parent.parent.name == "snapshots" and _COMMIT.fullmatch(parent.name) and repository.name.startswith("models--"):
            return repository
    return resolved


def _clean(name: str, value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return member_description(name, value, depth)
    return [_clean(name, each, depth) for each in value] if isinstance(value, list) else value


def _names(names: Any) -> list[str]:
    if not isinstance(names, (list, tuple)) or len(names) > MAX_MEMBERS or len(set(map(str, names))) != len(names):
        raise ValueError(f"The names of members must be a list of at most {MAX_MEMBERS}, each once, got {names!r:.200}.")
    for name in names:
        if (
            not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or len(name) > 64
        ):  # folders' names as well
            raise ValueError(f"A member cannot be called {name!r}: expected an identifier of at most 64 characters.")
    return list(names)


def _links(key: str, links: Any, names: list[str]) -> dict[str, str]:
    links = links or {}
    if (
        not isinstance(links, Mapping)
        or not set(links) <= set(names)
        or not all(isinstance(each, str) for each in links.values())
    ):
        raise ValueError(f"`{key}` must name a model for some of {names}, got {links!r:.200}.")
    return dict(links)
