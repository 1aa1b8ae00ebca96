"""A base that is sharded over two processes: the tokens of one process, on every rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sharded
import torch
from families import prompts
from random_cases import double
from transformers import LlamaConfig, LlamaForCausalLM

from hf_eft import EFTForCausalLM

TESTS = Path(__file__).resolve().parents[1]


def run(*command: str) -> None:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    for seed, (name, width) in enumerate((("base", 64), ("tuned", 32), ("reference", 32))):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, bos_token_id=1, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.dim() == 2 else 1)
        model.save_pretrained(folder / name)
    program = str(TESTS / "sharded.py")
    sharded.answer(folder, None)
    run("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone", program, str(folder))
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("alone", "0", "1")}


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_tokens_of_one_process(answers: dict[str, dict[str, Any]], rank: str) -> None:
    alone, mine = dict(answers["alone"]), dict(answers[rank])
    assert mine.pop("parts") == alone.pop("parts") // 2
    assert mine == alone


def test_processes_that_end_at_different_tokens_do_not_draft() -> None:
    """With `synced_gpus` each has other prompts, and all must take as many steps: how many a draft takes differs."""
    model = EFTForCausalLM.from_models(double("llama", 0), tuned=double("llama", 1), reference=double("llama", 2))
    with pytest.raises(ValueError, match=r"`synced_gpus`.*without an assistant"):
        model.generate(**prompts("one"), max_new_tokens=4, assistant_model=model.tuned, synced_gpus=True)
