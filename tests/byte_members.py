"""Members over bytes with the tiny vocabularies: what they are given, and what they say."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from byte_oracle import ALPHABETS, model, tokenizer

from hf_eft.bytes import ByteLevelModel

EXACT: dict[str, Any] = {"covers": None, "threshold": 0.0, "prompt": "bytes"}
OFFSET = 3
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "temperature": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "returned": {"do_sample": True, "num_return_sequences": 2},
    "match": {"do_sample": True, "coupling": "match", "seed": [5, 6, 7]},
    "penalty": {"repetition_penalty": 1.3},
    "no_cache": {"use_cache": False},
}


def ids_of(*texts: bytes) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    rows = [[0] * (longest - len(text)) + [byte + OFFSET for byte in text] for text in texts]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def probabilities(logits: torch.Tensor, alphabet: bytes) -> torch.Tensor:
    """Of the bytes of an alphabet and the end; nothing else has any."""
    p = logits.double().softmax(-1)
    chosen = torch.cat([p[..., [byte + OFFSET for byte in alphabet]], p[..., 1:2]], dim=-1)
    assert torch.allclose(chosen.sum(-1), torch.ones(()).double(), atol=1e-6)
    return chosen


def texts(name: str, length: int) -> list[bytes]:
    return [bytes(text) for text in itertools.product(ALPHABETS[name], repeat=length)]


PROMPTS = [b"ab", b"aabbab", b"bbaab"]
MODELS = {"base": ("overlapping", 0), "tuned": ("nested", 1), "reference": ("nested", 2)}


def members(**options: Any) -> dict[str, ByteLevelModel]:
    return {name: ByteLevelModel(model(which, seed), tokenizer(which), **options) for name, (which, seed) in MODELS.items()}


def generated(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**{**ids_of(*PROMPTS), "max_new_tokens": 8, **options}).tolist()


def written(ids: Any) -> bytes:
    return bytes(int(i) - OFFSET for i in ids if i >= OFFSET)
