"""Every way of running an engine gives `generate`'s answers, at four strengths mixed in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from settings import SETTINGS, Setting, run, unsupported, wrong

pytest.importorskip("vllm", reason="vLLM is not installed")


@pytest.mark.nightly
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_answers_do_not_depend_on_how_an_engine_is_run(setting: Setting, oracle: Path) -> None:
    if reason := unsupported(setting):
        pytest.skip(reason)
    assert wrong(setting, run(setting)) is None
