"""
vLLM's CPU build against hf_eft's answers, which lie in files, as the two need not live in one environment.

`EFT_ORACLE` is the folder that `oracle.py` wrote; without it, it is made here, if `hf_eft` is installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# The engine in this process: seconds sooner, and errors where they arise. What is known in one process only shows in test_server.py.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


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
def engine(oracle: Path, cases: dict[str, Any]) -> Callable[..., Any]:
    from vllm import LLM

    def make(name: str, **more: Any) -> Any:
        options = {
            "dtype": "float32", "enforce_eager": True, "max_model_len": cases[name]["max_model_len"], "kv_cache_memory_bytes": 64 << 20,
            "block_size": 32, "max_num_batched_tokens": 64, "max_num_seqs": 16, "seed": 0, "skip_tokenizer_init": name != "tiny", **more,
        }  # fmt: skip
        return LLM(str(oracle / name), **options)

    return make
