"""What may be written down as the place of a model: a repository of the Hub, and a commit of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id

_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_repo_id(text: Any) -> bool:
    """Whether this can be the name of a repository, and is no path."""
    if not isinstance(text, str) or text.startswith(".") or "//" in text:
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def is_commit(revision: Any) -> bool:
    """Whether a revision is a full commit, which names the same files for ever."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


def source_of(name: str) -> tuple[str, str | None]:
    """Where a model came from, as its `_name_or_path` tells it: a repository and its commit, or the last part of a path."""
    path = Path(name)
    if path.parent.name == "snapshots" and is_commit(path.name) and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1), path.name
    return (name, None) if is_repo_id(name) and not path.exists() else (path.name, None)


def check_repository(name: str, repo_id: Any, commit: Any = None) -> None:
    r"""
    Check what is to be written into a card or a recipe as the place of a member.

    Args:
        name (`str`): The member.
        repo_id (`str`): A repository of the Hub.
        commit (`str`, *optional*): Its commit, 40 hexadecimal digits.

    Raises:
        `ValueError`: If it is a path or anything else that is no repository, or the commit may move.
    """
    if not is_repo_id(repo_id):
        raise ValueError(
            f"The member {name!r} must be a repository of the Hub, as in 'owner/name', got {repo_id!r}. Folders of your machine mean "
            "nothing to who reads this: publish the model, and give its repository."
        )
    if commit is not None and not is_commit(commit):
        raise ValueError(
            f"The revision of {repo_id!r}, the member {name!r}, can move: expected a commit of 40 hexadecimal digits, got {commit!r}."
        )
