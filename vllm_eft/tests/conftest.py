"""
vLLM's CPU build against hf_eft's answers, which lie in files, as the two need not live in one environment.

`EFT_ORACLE` is the folder that `oracle.py` wrote; without it, tests that need an engine are skipped. With `VLLM_USE_V2_MODEL_RUNNER=1`
they are of the V2 model runner, in Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from answers import V2

# The engine in this process: seconds sooner, and errors where they arise. What is known in one process only shows in settings.py.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

_INTERPRETED = Path(__file__).parent / "interpreted"
if V2:
    runpy.run_path(str(_INTERPRETED / "sitecustomize.py"))
    # vLLM looks at models in processes of their own.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_INTERPRETED), os.environ.get("PYTHONPATH", "")])


def options_of(name: str, cases: dict[str, Any]) -> dict[str, Any]:
    """Of an engine: prompts in chunks, few requests at a time, and what makes a start quick."""
    return {
        "dtype": "float32", "enforce_eager": True, "max_model_len": cases[name]["max_model_len"], "kv_cache_memory_bytes": 64 << 20,
        "block_size": 32, "max_num_batched_tokens": 64, "max_num_seqs": 16, "seed": 0, "skip_tokenizer_init": name != "tiny",
    }  # fmt: skip


@pytest.fixture(scope="session")
def oracle() -> Path:
    folder = os.environ.get("EFT_ORACLE")
    if not folder or not (Path(folder) / "oracle.json").is_file():
        pytest.skip("EFT_ORACLE names no folder that vllm_eft/tests/oracle.py wrote")
    return Path(folder)


@pytest.fixture(scope="session")
def cases(oracle: Path) -> dict[str, Any]:
    return json.loads((oracle / "oracle.json").read_text())


@pytest.fixture
def engine(oracle: Path, cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes an engine of a combination. One in this process holds its memory, and its groups of processes, until it is told."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    monkeypatch.setattr("vllm_eft.engine._SERVED", [])  # those of tests before
    made = []

    def make(name: str, folder: Path | None = None, **more: Any) -> Any:
        made.append(LLM(str(folder or oracle / name), **{**options_of(name, cases), **more}))
        assert bool(made[-1].llm_engine.vllm_config.use_v2_model_runner) == V2
        return made[-1]

    yield make
    for llm in made:
        llm.llm_engine.engine_core.shutdown()
    made.clear()
    cleanup_dist_env_and_memory()
    gc.collect()
