"""What a delta says of itself: the bases that it learnt through, at which strength, and at which one it is to be used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from . import write
from .repositories import is_commit, is_repo_id
from .trust import MAX_SIZE, read_json

LEARNT = "learnt_through.json"  # beside the weights of an adapter, whose own configuration has no place for it
KEY = "learnt_through"  # in the configuration of a model with weights of its own
_MOST_BASES = 64
_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SAMPLE = re.compile(r"[0-9a-f]{16}")
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class Base:
    r"""
    A model that a delta learnt through, or is used with: what tells it from others. Nothing is ever loaded by its name.

    Args:
        model_type (`str`): As its configuration has it.
        hidden_size (`int`): The width of the model.
        num_hidden_layers (`int`): How many layers it has.
        vocab_size (`int`): Rows of its embedding table.
        name (`str`, *optional*): Its repository, or the last part of the path of its folder.
        revision (`str`, *optional*): The commit of the repository.
        sample (`str`, *optional*): 16 hexadecimal digits that some of its weights have for a digest.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    name: str | None = None
    revision: str | None = None
    sample: str | None = None

    def __str__(self) -> str:
        shape = f"{self.model_type}, {self.num_hidden_layers} layers of {self.hidden_size}"
        if self.name is None:
            return f"a model ({shape})"
        return f"{self.name}{'@' + self.revision[:8] if self.revision else ''} ({shape})"

    @property
    def published(self) -> bool:
        """Whether the name is surely that of a repository, which a card may tell others."""
        return self.name is not None and (self.revision is not None or "/" in self.name)

    def differs(self, other: Base) -> bool:
        """
        Whether this is another model. Shapes that differ say so; then some of the weights, where both are known; then repositories that
        have other names or commits. A folder may hold a copy of anything: its name counts where nothing else does.
        """
        if any(getattr(self, key) != getattr(other, key) for key in _SHAPE):
            return True
        if self.sample is not None and other.sample is not None and self.sample != other.sample:
            return True
        if self.published and other.published:
            known = self.revision is not None and other.revision is not None
            return self.name != other.name or (known and self.revision != other.revision)
        if self.sample is not None and other.sample is not None:
            return False
        return None not in (self.name, other.name) and _last(self.name) != _last(other.name)

    @classmethod
    def read(cls, found: Any) -> Base:
        """
        Raises:
            `ValueError`: If this is no description of a base.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(found, Mapping) or not set(_SHAPE) <= set(found) <= names:
            raise ValueError(f"a base must have {', '.join(_SHAPE)}, and may have name, revision, sample; got {found!r:.200}")
        kind, name, revision, sample = (found.get(key) for key in ("model_type", "name", "revision", "sample"))
        if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
            raise ValueError(f"`model_type` must name a type of model, got {kind!r:.80}")
        for key in _SHAPE[1:]:
            size = found[key]
            if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_SIZE:
                raise ValueError(f"`{key}` must be a number from 1 to {MAX_SIZE}, got {size!r:.80}")
        if name is not None and not is_repo_id(name):
            raise ValueError(f"`name` must be that of a repository or of a folder, and no path; got {name!r:.80}")
        if revision is not None and not is_commit(revision):
            raise ValueError(f"`revision` must be a commit of 40 hexadecimal digits, got {revision!r:.80}")
        if sample is not None and not (isinstance(sample, str) and _SAMPLE.fullmatch(sample)):
            raise ValueError(f"`sample` must have 16 hexadecimal digits, got {sample!r:.80}")
        return cls(**found)


@dataclass(frozen=True)
class Learnt:
    r"""
    How a delta was learnt.

    Args:
        bases (`tuple[Base, ...]`): The models that it learnt through.
        alpha (`float`): The strength in training.
        recommended_alpha (`float`): The strength that it is to be used at, where nothing else is said.

    Example:

    ```python
    >>> from hf_eft.files.learnt import Base, Learnt

    >>> learnt = Learnt((Base("llama", 64, 8, 1000, name="owner/large"),), alpha=0.25, recommended_alpha=0.3125)
    >>> Learnt.read(learnt.to_dict()) == learnt
    True
    ```
    """

    bases: tuple[Base, ...]
    alpha: float
    recommended_alpha: float

    def knows(self, base: Base) -> bool:
        """Whether it learnt through this base."""
        return any(not known.differs(base) for known in self.bases)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; what is not known is left out."""
        bases = [{key: value for key, value in asdict(base).items() if value is not None} for base in self.bases]
        return {"bases": bases, "alpha": self.alpha, "recommended_alpha": self.recommended_alpha}

    @classmethod
    def read(cls, found: Any, where: str = "what a delta says of itself") -> Learnt:
        """
        Raises:
            `ValueError`: If there are other keys than these, or values that say nothing; a path or code is none.
        """
        try:
            if not isinstance(found, Mapping) or set(found) != {"bases", "alpha", "recommended_alpha"}:
                raise ValueError(f"expected bases, alpha and recommended_alpha, and nothing else; got {found!r:.200}")
            bases, strengths = found["bases"], [found["alpha"], found["recommended_alpha"]]
            if not isinstance(bases, list | tuple) or not 0 < len(bases) <= _MOST_BASES:
                raise ValueError(f"`bases` must be a list of 1 to {_MOST_BASES} bases, got {bases!r:.200}")
            for strength in strengths:
                if not isinstance(strength, int | float) or isinstance(strength, bool) or not math.isfinite(strength):
                    raise ValueError(f"a strength must be a finite number, got {strength!r:.80}")
                if strength <= 0:
                    raise ValueError(f"a strength must be above 0, got {strength}: below, the delta is taken away")
            return cls(tuple(map(Base.read, bases)), *map(float, strengths))
        except ValueError as error:
            raise ValueError(f"{where} cannot be read: {error}.") from None

    @classmethod
    def beside(cls, folder: Path) -> Learnt | None:
        """
        What lies beside the weights of an adapter; `None` if nothing does.

        Raises:
            `ValueError`: If it cannot be read.
        """
        path = folder / LEARNT
        return cls.read(read_json(path), repr(str(path))) if path.is_file() else None

    def write(self, folder: Path) -> None:
        """Put it beside the weights of an adapter."""
        write(folder / LEARNT, json.dumps(self.to_dict(), indent=1) + "\n")


def _last(name: str | None) -> str:
    return str(name).rsplit("/", 1)[-1].casefold()
