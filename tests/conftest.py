"""Every test runs on one thread, offline, and fails on deprecations that transformers logs rather than raises."""

from __future__ import annotations

import gc
import logging
import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "warning"

import pytest
import torch
from families import SEED, changed
from rooms import chosen
from transformers.utils import logging as transformers_logging

from hf_eft import EFTForCausalLM, tiny

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()


# transformers' own candidate generator calls its assistant this way, and its Janus itself.
_NOT_OURS = "generation-related arguments"
_CALLED_SO = ("min_new_tokens", "({'guidance_scale'})")


class _DeprecationsAreErrors(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().lower()
        if _NOT_OURS in message and any(name in message for name in _CALLED_SO):
            return
        if "deprecat" in message or "will be removed" in message:
            raise AssertionError(f"transformers logged a deprecation: {record.getMessage()}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the short run on the oldest versions, before `-m` chooses by marks."""
    short = chosen([item.nodeid for item in items])
    for item in items:
        if item.nodeid in short:
            item.add_marker("floor")


def pytest_collection_finish() -> None:
    """What is there before the first test stays there: collections of garbage, of which engines of batches ask, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logged_deprecations_are_errors():
    handler = _DeprecationsAreErrors()
    logger = transformers_logging.get_logger("transformers")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(SEED)


@pytest.fixture(scope="module", autouse=True)
def _shared_models_stay_as_they_are():
    yield
    told = changed()
    assert not told, f"tests of this module change settings that all tests of a process share: {told}"


@pytest.fixture(scope="module")
def family() -> Any:
    """The embedded family."""
    return tiny.load()


@pytest.fixture(scope="module")
def model(family: Any) -> EFTForCausalLM:
    """The embedded family as one model."""
    return EFTForCausalLM.from_models(family.base, tuned=family.tuned, reference=family.reference)
