"""The embedded family, its folder, and the log of transformers, which tests of pipelines want to be empty."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from templates import wrapper
from transformers.utils import logging as transformers_logging

from hf_eft import tiny


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Whatever transformers logs from WARNING on (its loggers do not propagate, so that `caplog` never sees them); empty at the end."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), transformers_logging.get_logger("transformers")
    logger.addHandler(handler)
    transformers_logging.warning_once.cache_clear()
    yield lines
    logger.removeHandler(handler)
    assert not lines


@pytest.fixture(scope="module")
def folder(family: tiny.Family, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("saved")
    wrapper(family).save_pretrained(path)
    family.tokenizer.save_pretrained(path)
    return str(path)
