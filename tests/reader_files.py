"""Valid files for the readers to begin with, and where they are changed."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@functools.cache
def place() -> Path:
    """Where files are written that are read: one folder, made once."""
    return Path(tempfile.mkdtemp(prefix="readers-"))


@functools.cache
def models() -> Path:
    """Three plain models in `plain`, their combination in `saved`, and an adapter in `adapter`."""
    import torch
    from families import build
    from peft import LoraConfig, get_peft_model

    from hf_eft import EFTForCausalLM, tiny

    folder = place() / "models"
    made = [build("llama", seed, num_hidden_layers=1, vocab_size=944) for seed in range(3)]
    tokenizer = tiny.load().tokenizer
    for name, model in zip(("base", "tuned", "reference"), made, strict=True):
        model.save_pretrained(folder / "plain" / name)
        tokenizer.save_pretrained(folder / "plain" / name)
    three = EFTForCausalLM.from_models(made[0], tuned=made[1], reference=made[2])
    three.save_pretrained(folder / "saved", {"tuned": tokenizer}, card=False)
    torch.manual_seed(0)
    adapted = get_peft_model(build("llama", 4, num_hidden_layers=1), LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(folder / "adapter")
    return folder


@contextlib.contextmanager
def replaced(path: Path, data: bytes) -> Iterator[Path]:
    """A file that holds something else for a while."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.write_bytes(before)


def of_json(*examples: Any) -> Callable[[], list[bytes]]:
    """Values as files of JSON."""
    return lambda: [json.dumps(example).encode() for example in examples]


def of_file(folder: str, name: str) -> Callable[[], list[bytes]]:
    """A file of a folder of models."""
    return lambda: [(models() / folder / name).read_bytes()]
