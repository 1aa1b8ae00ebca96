"""A combination's folder, put into a repository of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files.trust import check_tree
from .places import READ, Place, description_of


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
        delete_patterns=["members/*", "rules.safetensors"],
    )
