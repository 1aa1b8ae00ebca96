"""What a file may decide: which keys are read, which places they may name, how large they may be. Nothing is loaded or fetched here."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from .repositories import is_commit, is_repo_id

MODEL_TYPE = "eft"
CONFIG = "config.json"
#: In what members with different tokenizers can be combined.
VOCABULARIES = ("tokens", "bytes")
ADAPTER = "adapter_config.json"

# What is far above any model, and far below what fills a machine's memory.
MAX_JSON = 8 * 2**20  # bytes of a configuration, of an index of shards
MAX_MEMBERS = 64
MAX_FILES = 10_000
MAX_COUNT = 4_096  # layers, heads, experts: each is a module, made before a weight is read
MAX_SIZE = 2**31  # any other number of a configuration

# The keys of an EFT configuration, besides `<member>_config`. Others are an error unless they say what is so anyway.
_KEYS = frozenset(
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
# Types of model whose configuration has another library load what it names.
_REFUSED_TYPES = ("timm_wrapper", "timm_backbone", MODEL_TYPE)
_COUNTS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks?|experts?|heads?)")
_DTYPE = re.compile(r"(torch\.)?(auto|b?float[0-9a-z_]*|half|double)")
_SPECIAL_FLOATS = ("NaN", "Infinity", "-Infinity")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack")


def read_json(path: Path) -> dict[str, Any]:
    r"""
    A JSON object from a file.

    Raises:
        `ValueError`: If the file is too large, nested too deeply, or holds anything else.
    """
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{str(path)!r} has {size:,} bytes, expected at most {MAX_JSON:,}: it is refused.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {type(found).__name__}.")
    return found


def check_description(description: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    r"""
    Check an EFT configuration that was read from a file.

    Args:
        description (`Mapping[str, Any]`): What was read.
        defaults (`Mapping[str, Any]`): The description of an empty configuration, whose keys may be there if they say the same.

    Raises:
        `ValueError`: For the configuration of another model, a key that is not read, a value of the wrong kind, too many members.
    """
    found = description.get("model_type")
    if found != MODEL_TYPE:
        raise ValueError(
            f"This is the configuration of a model of type {found!r}, expected {MODEL_TYPE!r}. To combine plain models, "
            "load each with `AutoModelForCausalLM` and use `EFTForCausalLM.from_models`."
        )
    names = _names(description.get("member_names") or [])
    adapters = _links("adapters", description, names)
    shared = _links("shared_members", description, names)
    _names([trunk for trunk in dict.fromkeys(adapters.values()) if trunk not in names])
    if wrong := [name for name, owner in shared.items() if owner not in names or owner in shared or owner == name]:
        raise ValueError(
            f"The configuration's `shared_members` must name a member with a model of its own for each, got {wrong} with {shared}."
        )
    if wrong := [name for name, trunk in adapters.items() if trunk in adapters or trunk in shared or name in shared]:
        raise ValueError(
            f"The configuration's `adapters` must name a model with weights of its own for each, got {wrong} with {adapters}."
        )
    if unknown := sorted(key for key in description if not is_read(key, description, defaults)):
        raise ValueError(
            f"The configuration has keys that are not read: {', '.join(map(repr, unknown))}. Expected {', '.join(sorted(_KEYS))} and a "
            "configuration for each member."
        )
    _check_dtype("the combination", "dtype", description.get("dtype"))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        _check_token(key, description.get(key))
    _names(description.get("tokenizer_members") or [])
    if (vocabulary := description.get("vocabulary")) not in (None, *VOCABULARIES):
        raise ValueError(
            f"The configuration's `vocabulary` must be null or one of {', '.join(VOCABULARIES)}, got {vocabulary!r:.80}."
        )
    _check_combination(description.get("combination"), names)
    references = description.get("references") or {}
    if not isinstance(references, dict) or (references and set(references) != set(names)):
        raise ValueError(f"The configuration's `references` must have a repository for each of {names}, got {references!r}.")
    for name, reference in references.items():
        check_reference(name, reference)


def check_reference(name: str, reference: Any) -> tuple[str, str]:
    r"""
    The repository and the commit that a recipe names for a member.

    Raises:
        `ValueError`: If it names anything else than a repository of the Hub, or a revision that can move.
    """
    if not isinstance(reference, dict) or set(reference) != {"repo_id", "revision"}:
        raise ValueError(
            f"The reference of the member {name!r} must have `repo_id` and `revision`, nothing else; got {reference!r}."
        )
    repo_id, revision = reference["repo_id"], reference["revision"]
    if not is_repo_id(repo_id):
        raise ValueError(f"The reference of the member {name!r} must name a repository of the Hub, got {repo_id!r}.")
    if not is_commit(revision):
        raise ValueError(
            f"The reference of the member {name!r} to {repo_id!r} can move: its revision is {revision!r}, expected a commit of 40 "
            "hexadecimal digits. A recipe says exactly which weights it means."
        )
    return repo_id, revision


def member_description(name: str, description: Any) -> dict[str, Any]:
    r"""
    A member's configuration without what names code, repositories or kernels, at any depth.

    Raises:
        `ValueError`: If it is no configuration, that of a combination, or has numbers that no model has.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("model_type"), str):
        raise ValueError(f"The member {name!r} must have a configuration with a `model_type`, got {description!r:.200}.")
    return clean(name, description, 0)


def inside(folder: Path, relative: str) -> Path:
    r"""
    A path inside of a folder.

    Raises:
        `ValueError`: If the path is absolute, has a drive, or leads out of the folder, through `..` or a symbolic link.
    """
    windows = PureWindowsPath(relative)
    parts = [*Path(relative).parts, *windows.parts]
    root = _root_of(folder)
    if not relative or windows.drive or windows.root or ".." in parts or not (folder / relative).resolve().is_relative_to(root):
        raise ValueError(f"The path {relative!r} leads out of the folder {str(folder)!r}: it is refused.")
    return folder / relative


def check_tree(folder: Path) -> None:
    r"""
    Check a folder before anything in it is read.

    Raises:
        `ValueError`: If something in it lies elsewhere (a symbolic link), or there are too many files.
    """
    for count, path in enumerate(folder.rglob("*"), start=1):
        if count > MAX_FILES:
            raise ValueError(f"The folder {str(folder)!r} has more than {MAX_FILES:,} files: it is refused.")
        inside(folder, path.relative_to(folder).as_posix())


def check_weights(name: str, folder: Path) -> None:
    r"""
    Check the weights of a member that lie in a folder.

    Raises:
        `ValueError`: If there are none in safetensors, naming the member, or an index names files elsewhere.
    """
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"The member {name!r} has an {ADAPTER} beside weights of its own in {str(folder)!r}: it is one or the other."
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, Mapping):
            raise ValueError(f"The index of the member {name!r} must have a `weight_map`, got {shards!r:.200}.")
        for shard in shards.values():
            if not isinstance(shard, str) or not shard.endswith(".safetensors"):
                raise ValueError(f"The index of the member {name!r} names {shard!r:.200}, which is no safetensors file.")
        for shard in set(shards.values()):
            if not _is_file(inside(folder, shard)):
                raise ValueError(f"The index of the member {name!r} names {shard!r}, which is not in {str(folder)!r}.")
    elif not (folder / "model.safetensors").is_file():
        pickles = sorted(path.name for kind in _PICKLES for path in folder.glob(kind))
        found = f"only {', '.join(pickles)}, which can run code when loaded" if pickles else "no weights"
        raise ValueError(
            f"The member {name!r} has no safetensors in {str(folder)!r}: there is {found}. Save it anew: "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)`."
        )


def check_code(name: str, description: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if a member's own code would come from a repository other than the one that was named."""
    auto_map = description.get("auto_map")
    values = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    if other := [value for value in values if "--" in str(value)]:
        raise ValueError(
            f"The configuration of the member {name!r} has code loaded from other repositories: {other}. `trust_remote_code` covers the "
            "repository that you named, and no other."
        )


def clean(name: str, description: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """A member's description without what is not read, `depth` levels deep in its configuration; what a file may not say is refused."""
    if depth > 16:
        raise ValueError(f"The configuration of the member {name!r} is nested more than 16 deep: it is refused.")
    kind = description.get("model_type")
    if kind in _REFUSED_TYPES:
        what = "another combination" if kind == MODEL_TYPE else f"a {kind}, which loads what its configuration names"
        raise ValueError(f"The member {name!r} is {what}: it is refused. Give a causal language model.")
    clean: dict[str, Any] = {}
    for key, value in description.items():
        if key in LOST:
            continue
        _check_number(name, key, value)
        _check_dtype(f"the member {name!r}", key, value)
        clean[key] = _clean_value(name, value, depth + 1)
    return clean


def _clean_value(name: str, value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return clean(name, value, depth)
    if isinstance(value, (list, tuple)) and any(isinstance(each, (Mapping, list)) for each in value):
        return [_clean_value(name, each, depth + 1) for each in value]
    return value


def _check_dtype(name: str, key: str, value: Any) -> None:
    # transformers takes whatever torch has under this name.
    named = isinstance(value, str) and _DTYPE.fullmatch(value) is not None
    if key in ("dtype", "torch_dtype") and not named and _is_json(value):
        raise ValueError(f"The configuration of {name} has `{key}` = {value!r:.80}, expected a floating-point dtype of torch.")


def _check_token(key: str, value: Any) -> None:
    several = key == "eos_token_id" and isinstance(value, (list, tuple))
    if not all(
        token is None or (isinstance(token, int) and not isinstance(token, bool)) for token in (value if several else [value])
    ):
        raise ValueError(f"The configuration of the combination has `{key}` = {value!r:.80}, expected the id of a token.")


def _is_file(path: Path) -> bool:
    """Whether there is such a file; there is none whose name is longer than names can be."""
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def _is_json(value: Any) -> bool:
    """Whether a value came out of a file, rather than from who makes a configuration with torch's own dtypes."""
    return isinstance(value, (str, int, float, list, dict))


def _check_number(name: str, key: str, value: Any) -> None:
    limit = MAX_COUNT if _COUNTS.fullmatch(str(key)) else MAX_SIZE
    for number in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(number, int) and abs(number) > limit:
            raise ValueError(f"The configuration of the member {name!r} has `{key}` = {number}, expected at most {limit}.")


def _names(names: Any) -> list[str]:
    if not isinstance(names, (list, tuple)) or len(names) > MAX_MEMBERS or len(set(map(str, names))) != len(names):
        raise ValueError(f"The names of members must be a list of at most {MAX_MEMBERS}, each once, got {names!r:.200}.")
    for name in names:
        # Names are those of folders as well.
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or len(name) > 64:
            raise ValueError(f"A member cannot be called {name!r}: expected an identifier of at most 64 characters.")
    return list(names)


def _links(key: str, description: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    links = description.get(key) or {}
    if (
        not isinstance(links, dict)
        or not all(isinstance(value, str) for value in links.values())
        or not set(links) <= set(names)
    ):
        raise ValueError(f"The configuration's `{key}` must name a model for some of {names}, got {links!r:.200}.")
    return links


def _check_combination(recipe: Any, names: list[str]) -> None:
    if recipe is None:
        return
    if not isinstance(recipe, dict) or not isinstance(recipe.get("coefficients"), dict):
        raise ValueError(f"`combination` must have `coefficients` by member, got {recipe!r:.200}.")
    truncation = recipe.get("truncation") or {}
    if not isinstance(truncation, dict):
        raise ValueError(f"`truncation` must have `rule` and `p`, got {truncation!r:.200}.")
    if unknown := (set(recipe) - {"coefficients", "truncation", "phases"}) | (set(truncation) - {"rule", "p"}):
        raise ValueError(f"The recipe has keys that are not read: {', '.join(sorted(map(repr, unknown)))}.")
    if names and (unknown := set(recipe["coefficients"]) - set(names)):
        raise ValueError(f"The recipe names {sorted(unknown)}, but the members are {names}.")


def is_read(key: str, description: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether a key of an EFT configuration is one that is read, or says what is so anyway."""
    names = [*(description.get("member_names") or []), *(description.get("adapters") or {}).values()]
    return (
        key in _KEYS or (key.endswith("_config") and key.removesuffix("_config") in names) or _same(key, description, defaults)
    )


def _special_float(value: dict[str, Any]) -> Any:
    """JSON has no infinity: transformers writes an object in its place."""
    return float(value["__float__"]) if value.keys() == {"__float__"} and value["__float__"] in _SPECIAL_FLOATS else value


def _same(key: str, description: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    if key not in defaults:
        return False
    return _plain(description[key]) == _plain(defaults[key])


def _plain(value: Any) -> str:
    """A value as JSON has it, which has no integer keys."""
    if isinstance(value, Mapping):
        return str({str(key): _plain(each) for key, each in sorted(value.items(), key=lambda item: str(item[0]))})
    return json.dumps(value, default=str, sort_keys=True)


def _root_of(folder: Path) -> Path:
    """Where the files of a folder may lie: in it, or, if the Hub's cache keeps it, among that repository's files."""
    resolved = folder.resolve()
    for parent in [resolved, *resolved.parents]:
        repository = parent.parent.parent
        if parent.parent.name == "snapshots" and is_commit(parent.name) and repository.name.startswith("models--"):
            return repository
    return resolved
