"""What is checked of an engine's configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")


class Configuration:
    """Of an engine whose vLLM has a V2 model runner that takes no logits processor."""

    speculative_config: Any = None

    def __init__(self, folder: Path, falls_back: bool) -> None:
        from vllm_eft.config import EFTConfig

        self.model_config = SimpleNamespace(
            hf_config=EFTConfig.from_pretrained(folder),
            model=str(folder),
            max_model_len=64,
            enable_prompt_embeds=False,
            logits_processors=None,
        )
        self._falls_back = falls_back

    @property
    def use_v2_model_runner(self) -> bool:
        return not (self._falls_back and self.model_config.logits_processors)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_eft.engine._SERVED", [])


def test_where_vllm_chooses_v1_for_the_processor_it_is_v1(oracle: Path) -> None:
    """And has neither schedules nor drafts, whatever it was before."""
    from vllm_eft.engine import check_engine, check_request

    config = Configuration(oracle / "llama", falls_back=True)
    check_engine(config)
    with pytest.raises(ValueError, match="A schedule needs the V2 model runner"):
        check_request({"alpha": [0.5, 1.0]})
    with pytest.raises(ValueError, match="A recipe with a schedule needs the V2 model runner"):
        check_engine(Configuration(oracle / "scheduled", falls_back=True))
    config.speculative_config = object()
    with pytest.raises(ValueError, match="V1 model runner tells a model nothing of requests"):
        check_engine(config)


def test_a_v2_model_runner_without_processors_is_refused(oracle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_eft.engine import check_engine

    monkeypatch.setattr("vllm_eft.engine.v2_processor", lambda: None)
    with pytest.raises(ValueError, match="V2 model runner takes no logits processor"):
        check_engine(Configuration(oracle / "llama", falls_back=False))
