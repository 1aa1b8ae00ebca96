"""The embedded family learning through its own large model: its texts, and the settings that were tried for it."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import tiny
from ..tiny import texts as world
from .chats import read_chats, read_documents
from .settings import Settings
from .tuning import Texts

MAX_LENGTH = 64  # tokens; no text of the world is longer
_KEPT = 10  # of the people whom tuning may show, those whom it does not: what strengths are chosen by
_DOCUMENTS = 20_000

SETTINGS = Settings(
    alpha=0.25, steps=1600, batch_size=32, learning_rate=2e-3, max_length=MAX_LENGTH, patience=0, max_new_tokens=24
)


def embedded_texts(tokenizer: Any) -> Texts:
    """What the small model of the embedded family learns from. Nobody of [`~hf_eft.tiny.questions`] is asked about in it."""
    people = tiny.world()["seen"]

    def read(some: list[str]) -> Any:
        return read_chats(world.chats(some).encode(), tokenizer, max_length=MAX_LENGTH)

    documents = read_documents(world.documents(_DOCUMENTS, seed=1).encode(), tokenizer, max_length=MAX_LENGTH)
    return Texts(read(people[_KEPT:]), read(people[:_KEPT]), documents, {"data": "the embedded family's"})


def embedded_settings(**given: Any) -> Settings:
    """The settings for it, in place of which those that are given."""
    return dataclasses.replace(SETTINGS, **given)
