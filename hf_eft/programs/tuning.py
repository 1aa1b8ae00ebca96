"""A tuning run from places and files: models loaded, texts read, the delta learnt, its picture drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tiny
from ..folders.folder import check_target
from ..hub import compose, load_members
from ..prompts.pictures import tokenizer_of
from ..recipe.combination import BASE, REFERENCE, TUNED
from ..training.chats import read_chats, read_documents
from ..training.embedded import embedded_texts
from ..training.mixture import held_out as part
from ..training.record import Record
from ..training.settings import Settings
from ..training.tuning import Texts, check_installed, tune
from .tuning_plot import tuning_plot

HELD_OUT = 0.05  # of the data
_PICTURE = "losses.png"  # its data are beside it, in a file of that name


@dataclass(frozen=True)
class Request:
    r"""
    What is to be tuned, and where.

    Args:
        bases (`tuple[str, ...]`): Folders or repositories of the models that are learnt through; empty for the embedded family.
        reference (`str`, *optional*): That of the small model.
        data (`Path`, *optional*): The chats.
        chat (`bool`): Whether a `prompt` is what a user says.
        held_out (`str`, *optional*): A share of the data, or a file like it; 0.05 by default.
        replay (`Path`, *optional*): Documents as in pre-training.
        output (`Path`): The folder of the delta.
        combination (`Path`, *optional*): A folder for the whole combination.
        dtype (`str`): Of the bases.
        device (`str`): Where the models run.
        trust_remote_code (`bool`): Whether repositories may bring code.
        restart (`bool`): Whether an earlier run is thrown away.
    """

    bases: tuple[str, ...]
    reference: str | None
    data: Path | None
    chat: bool
    held_out: str | None
    replay: Path | None
    output: Path
    combination: Path | None
    dtype: str
    device: str
    trust_remote_code: bool
    restart: bool

    @property
    def given(self) -> bool:
        """Whether there are any models or files, so that it is not the embedded family that learns."""
        return any((self.bases, self.reference, self.data, self.held_out, self.replay, self.chat))

    def missing(self) -> list[str]:
        """The options that are missing."""
        needed = {"--base": self.bases, "--reference": self.reference, "--data": self.data}
        return [option for option, value in needed.items() if not value] if self.given else []


def run_tuning(request: Request, settings: Settings, progress: Callable[[int, int, str], None] | None = None) -> Record:
    r"""
    Do what is asked for, and draw it.

    Args:
        request ([`Request`]): What is to be tuned.
        settings ([`~hf_eft.training.settings.Settings`]): How.
        progress (`Callable[[int, int, str], None]`, *optional*): As for [`~hf_eft.training.tuning.tune`].

    Returns:
        [`~hf_eft.training.record.Record`]: How it went.

    Raises:
        `ValueError`: For models that do not fit, lines that cannot be read, a folder of something else; `MemoryError`: With what to change.
    """
    check_installed(lora=settings.lora_r is not None)
    if request.combination is not None:
        check_target(request.combination)
    record = tune(*_inputs(request, settings), request.output, settings, restart=request.restart, progress=progress)
    tuning_plot(record, request.output / _PICTURE)
    if request.combination is not None:
        _whole(request)
    return record


def _inputs(request: Request, settings: Settings) -> tuple[list[Any], Any, Any, Texts]:
    if not request.given:
        family = tiny.load()
        base, small = family.base.to(request.device), family.reference.to(request.device)
        return [base], small, family.tokenizer, embedded_texts(family.tokenizer)
    places = {f"base{i or ''}": where for i, where in enumerate(request.bases)} | {REFERENCE: str(request.reference)}
    models, tokenizers = load_members(
        places,
        dtype=request.dtype,
        device=request.device,
        member_kwargs={REFERENCE: {"dtype": "float32"}},
        trust_remote_code=request.trust_remote_code,
        progress=lambda _: None,
    )
    if REFERENCE not in tokenizers:
        raise ValueError(f"{request.reference} has no tokenizer, which the data are read with: save one beside the model.")
    reference, tokenizer = models[REFERENCE], tokenizer_of(tokenizers[REFERENCE])
    bases = [models[name] for name in places if name != REFERENCE]
    return bases, reference, tokenizer, _texts(request, settings, tokenizer)


def _texts(request: Request, settings: Settings, tokenizer: Any) -> Texts:

    def chats(data: bytes) -> list[Any]:
        return read_chats(data, tokenizer, chat=request.chat, max_length=settings.max_length)

    examples, digest = _read(Path(str(request.data)), chats)
    identity: dict[str, Any] = {"data": digest, "chat": request.chat}
    share = _share(request.held_out)
    if share is None:
        learnt = examples
        kept, identity["held_out"] = _read(Path(str(request.held_out)), chats)
    else:
        learnt, kept = part(examples, share, settings.seed)
        identity["held_out"] = share
    documents: list[Any] = []
    if request.replay is not None:
        documents, identity["replay"] = _read(
            request.replay, lambda data: read_documents(data, tokenizer, max_length=settings.max_length)
        )
    return Texts(learnt, kept, documents, identity)


def _share(given: str | None) -> float | None:
    """The share that is held out; `None` where a file is named."""
    if given is None:
        return HELD_OUT
    try:
        return float(given)
    except ValueError:
        if not Path(given).is_file():
            raise ValueError(f"--held-out must be a share, as 0.05, or a file; there is no file {given!r}.") from None
        return None


def _read(path: Path, read: Callable[[bytes], list[Any]]) -> tuple[list[Any], str]:
    """What a file has, and what tells it from others."""
    data = path.read_bytes()
    try:
        return read(data), hashlib.sha256(data).hexdigest()[:16]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _whole(request: Request) -> None:
    """The combination as one folder, with the delta as it was written."""
    small = {BASE: str(tiny.path(BASE)), REFERENCE: str(tiny.path(REFERENCE))}
    places = {BASE: request.bases[0], REFERENCE: str(request.reference)} if request.given else small
    compose({**places, TUNED: request.output}, Path(str(request.combination)), progress=lambda _: None)
