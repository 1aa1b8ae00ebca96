"""What writes members' prompts, in the folders: tokenizers and, for members that see, the processors that these are part of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers.utils import logging

from ..files.trust import check_code, read_json
from ..prompts.pictures import is_processor
from ..recipe.combination import BASE, REFERENCE
from .loading import load_tokenizer

logger = logging.get_logger(__name__)

TOKENIZER_CONFIG = "tokenizer_config.json"
#: What describes a processor. (Its tokenizer's files are a tokenizer's.)
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
#: Files of a tokenizer or a processor, which another one's may not be left beside.
OF_PROCESSING = (
    "tokenizer*", "chat_template*", "additional_chat_templates", "*tokens*.json", *PROCESSOR_CONFIGS, "audio_tokenizer*"
)  # fmt: skip
# What a tokenizer's description says about how it was loaded, not what it is.
_OF_THE_LOADING = ("is_local", "local_files_only", "name_or_path")


# Loading --------------------------------------------------------------------------------------------------------------


def load_processing(
    name: str,
    place: str | Path,
    find: Callable[[str], Path | None],
    sees: bool,
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    r"""
    A member's processor, or its tokenizer where it has no other or does not see.

    Args:
        name (`str`): The member, for messages.
        place (`str` or `Path`): A folder, or a repository.
        find (`Callable[[str], Path or None]`): A file of it by its name.
        sees (`bool`): Whether the member is one that sees.
        trust_remote_code (`bool`, *optional*, defaults to `False`): What the caller said, never what a file says.
        **options: Passed on to `from_pretrained`.

    Raises:
        `ValueError`: If the tokenizer cannot be loaded, or a file would have another model or another repository's code loaded. A processor
            that cannot be loaded (its library is missing, it has code of its own) is told: texts do not need it.
    """
    tokenizer = load_tokenizer(name, place, trust_remote_code, **options)
    found = [path for file in PROCESSOR_CONFIGS if (path := find(file)) is not None] if sees else []
    if not found:
        return tokenizer
    for path in found:
        _check_description(name, path, trust_remote_code)
    try:
        made = transformers.AutoProcessor.from_pretrained(place, trust_remote_code=trust_remote_code, **options)
        if not is_processor(made):
            raise ValueError("it has no image processor")
    except Exception as error:  # what is in a file decides what is raised, and by which library
        said = " ".join(str(error).split())
        logger.warning(
            f"The processor of the member {name!r} in {str(place)!r} is not there, so that pictures are refused: {said}"
        )
        return tokenizer
    return made


def _check_description(name: str, path: Path, trust_remote_code: bool) -> None:
    for part in _objects(read_json(path)):
        if "audio_tokenizer" in part:
            raise ValueError(
                f"The processor of the member {name!r} would have another model loaded, by `audio_tokenizer` in {path.name}: it is refused."
            )
        if trust_remote_code:
            check_code(name, part)


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a description, at any depth."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from _objects(each)


def read_processing(folder: Path, members: Path, seeing: Mapping[str, bool], own: bool = False) -> dict[str, Any]:
    r"""
    What writes the prompts of each member of a saved folder: its own tokenizer or processor, or the folder's.

    Args:
        folder (`Path`): The saved folder.
        members (`Path`): Its folder of members.
        seeing (`Mapping[str, bool]`): By member, whether it sees.
        own (`bool`, *optional*, defaults to `False`): Whether each must have its own.

    Raises:
        `ValueError`: If a member that must have its own has none.
    """
    if own and (missing := [name for name in seeing if not (members / name / TOKENIZER_CONFIG).is_file()]):
        raise ValueError(
            f"The members in {str(folder)!r} are combined across their tokenizers, but {missing} have no {TOKENIZER_CONFIG} in "
            f"{str(members)!r}: save the combination anew."
        )
    if not own and not (folder / TOKENIZER_CONFIG).is_file():
        return {}
    read: dict[tuple[Path, bool], Any] = {}
    places = {name: members / name if (members / name / TOKENIZER_CONFIG).is_file() else folder for name in seeing}
    if own:  # those that are the same are one object, so that members that share a model share its view
        first: dict[tuple[tuple[str, bytes], ...], Path] = {}
        places = {name: first.setdefault(_files(place), place) for name, place in places.items()}
    for name, place in places.items():
        if (key := (place, seeing[name])) not in read:
            read[key] = load_processing(name, place, _in(place), seeing[name], local_files_only=True)
    return {name: read[place, seeing[name]] for name, place in places.items()}


def _files(folder: Path) -> tuple[tuple[str, bytes], ...]:
    """What describes a tokenizer or a processor in a folder, file by file."""
    found = {path for pattern in OF_PROCESSING for path in folder.glob(pattern) if path.is_file()}
    return tuple(sorted((path.name, path.read_bytes()) for path in found))


def _in(folder: Path) -> Callable[[str], Path | None]:
    return lambda file: folder / file if (folder / file).is_file() else None


# Saving ---------------------------------------------------------------------------------------------------------------


def root_tokenizer(tokenizers: Mapping[str, Any], members: Sequence[str]) -> str | None:
    """
    The member whose tokenizer prompts are written with: a tuned member's, or another's if no tuned member has one; the first of these
    that has a chat template, else the first.
    """
    known = [name for name in members if name in tokenizers]
    ours = [name for name in known if name not in (BASE, REFERENCE)] or known
    with_template = [name for name in ours if getattr(tokenizers[name], "chat_template", None)]
    return next(iter(with_template + ours), None)


def check_processing(given: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if a processor could not come back from a folder."""
    for name, each in given.items():
        if is_processor(each) and getattr(transformers, type(each).__name__, None) is not type(each):
            raise ValueError(
                f"The processor of the member {name!r} is a {type(each).__name__}, which is none of transformers': a folder could not "
                f"bring it back. Save the tokenizer alone: `save_pretrained(..., tokenizers={{{name!r}: processor.tokenizer, ...}})`."
            )


def write_processing(given: Mapping[str, Any], members: Sequence[str], new: Path, own: Path, staging: Path) -> None:
    r"""
    Write tokenizers and processors, the one that prompts are written with at the root, others that differ from it beside their members.

    Args:
        given (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`): By member.
        members (`Sequence[str]`): All of them, in order.
        new (`Path`): The folder that is written.
        own (`Path`): Its folder of members.
        staging (`Path`): Where there is room to write in before.
    """
    if (root := root_tokenizer(given, members)) is None:
        return
    contents = {}
    for name, each in given.items():
        each.save_pretrained(staging / name)
        contents[name] = _content(staging / name)
    for name in given:
        if name == root or contents[name] != contents[root]:
            shutil.copytree(staging / name, new if name == root else own / name, dirs_exist_ok=True)


def write_own_processing(given: Mapping[str, Any], spoken: Mapping[str, Any], new: Path, own: Path) -> None:
    r"""
    Write every member's own tokenizer or processor beside it, and at the root one that prompts are written with.

    Args:
        given (`Mapping[str, PreTrainedTokenizerBase or ProcessorMixin]`): By member, its own.
        spoken (`Mapping[str, PreTrainedTokenizerBase]`): By member, what its prompts are written with; may be empty.
        new (`Path`): The folder that is written.
        own (`Path`): Its folder of members.
    """
    for name, each in given.items():
        each.save_pretrained(own / name)
    if (root := root_tokenizer(spoken, [*spoken])) is not None:
        spoken[root].save_pretrained(new)


def _content(folder: Path) -> dict[str, Any]:
    """What a saved tokenizer or processor is, file by file."""
    content: dict[str, Any] = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    description = json.loads(content[TOKENIZER_CONFIG])
    content[TOKENIZER_CONFIG] = {key: value for key, value in description.items() if key not in _OF_THE_LOADING}
    return content
