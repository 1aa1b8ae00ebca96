"""Where a model lies: a folder, or a repository of the Hub at one commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..configuration_eft import EFTConfig
from ..files.repositories import source_of
from ..files.trust import CONFIG, check_description, inside, is_commit, is_repo_id, read_json

# What is read of a saved combination: nothing that runs, and no weights in any other format.
READ = ("*.json", "rules.safetensors", "members/*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")


@dataclass(frozen=True)
class Place:
    r"""
    A folder, or a repository at a commit.

    Args:
        name (`str`): The folder or the repository, as transformers takes it.
        commit (`str`, *optional*): The commit; `None` for a folder.
        options (`dict`): How the Hub is asked: `token`, `cache_dir`, `local_files_only`, `force_download`, `proxies`.
    """

    name: str
    commit: str | None = None
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, where: str | Path, revision: str | None = None, **options: Any) -> Place:
        r"""
        Args:
            where (`str` or `Path`): A folder, or the id of a repository.
            revision (`str`, *optional*): A branch, a tag or a commit; resolved now.

        Raises:
            `ValueError`: If there is no such folder, and this can be no repository either; `OSError`: If the Hub has no such thing.
        """
        if Path(where).is_dir():
            return cls(str(where), None, options)
        if not isinstance(where, str) or not is_repo_id(where):
            raise ValueError(f"{str(where)!r} is neither a folder that exists nor the id of a repository on the Hub.")
        return cls.on_hub(where, revision, **options)

    @classmethod
    def on_hub(cls, repo_id: str, revision: str | None = None, **options: Any) -> Place:
        """
        A repository.

        Raises:
            `ValueError`: If a folder has its name; `OSError`: If the Hub has no such thing.
        """
        from huggingface_hub import HfApi

        if Path(repo_id).exists():
            raise ValueError(
                f"There is a folder {repo_id!r} where you are, which transformers would read in place of the repository. Go elsewhere, or "
                "rename it."
            )
        commit = getattr(revision, "resolved", revision) if getattr(revision, "_repo_id", repo_id) == repo_id else str(revision)
        if not is_commit(commit):
            asked = {key: options[key] for key in ("token", "cache_dir", "local_files_only") if key in options}
            try:
                commit = HfApi().resolve_revision(repo_id, revision=revision, **asked).resolved
            except Exception as error:  # errors of the Hub's client have no root of their own
                raise OSError(
                    f"The repository {repo_id!r} cannot be found at {revision or 'its main revision'!r}: {error}"
                ) from error
        return cls(repo_id, commit, options)

    @property
    def where(self) -> dict[str, Any]:
        """What a loading call of transformers is told beside the name."""
        return {**self.options, "revision": self.commit} if self.commit else {"local_files_only": True}

    @property
    def source(self) -> tuple[str, str | None]:
        """The repository and the commit, or the folder's name."""
        return (self.name, self.commit) if self.commit else source_of(self.name)

    def file(self, name: str) -> Path | None:
        """A file, fetched if need be; `None` if there is none of that name."""
        from transformers.utils import cached_file

        found = cached_file(self.name, name, **self.where, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    def folder(self, subfolder: str = "", patterns: tuple[str, ...] = READ, tqdm_class: Any = None) -> Path:
        """The folder, or the repository's files of these kinds in the cache."""
        if self.commit is None:
            return Path(self.name, subfolder)
        from huggingface_hub import snapshot_download

        prefix = f"{subfolder}/" if subfolder else ""
        options = {key: value for key, value in self.options.items() if key != "proxies"}
        if tqdm_class is not None:
            options["tqdm_class"] = tqdm_class
        allowed = [f"{prefix}{pattern}" for pattern in patterns]
        return Path(snapshot_download(self.name, revision=self.commit, allow_patterns=allowed, **options), subfolder)


def description_of(place: Place, subfolder: str = "") -> dict[str, Any]:
    """
    The configuration of a combination, checked.

    Raises:
        `ValueError`: If there is none, or it is that of another model, or has what is not read.
    """
    relative = f"{subfolder}/{CONFIG}" if subfolder else CONFIG
    path = inside(Path(place.name), relative) if place.commit is None else place.file(relative)
    if path is None or not path.is_file():
        raise ValueError(f"There is no {relative!r} in {place.name!r}: it is no saved combination.")
    description = read_json(path)
    check_description(description, EFTConfig().to_dict())
    if not description.get("text_config") and not description.get("references"):
        raise ValueError(f"The configuration in {place.name!r} has no members: it is no saved combination.")
    return description
