"""Random models to which a character is a token, and what a batch run of them answers to lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from families import PAD, shared

from hf_eft import EFTForCausalLM
from hf_eft.programs.answer import Answerer
from hf_eft.programs.batch import read_items


class Letters:
    """A tokenizer that reads a character as a token, and shows tokens as numbers."""

    pad_token_id = PAD
    chat_template = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 60 + 4 for letter in text]}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return " ".join(map(str, ids))


def combination(**recipe: Any) -> EFTForCausalLM:
    return EFTForCausalLM.from_models(shared("llama", 0), tuned=shared("gpt2", 1), reference=shared("gpt2", 2), **recipe)


def answers(
    lines: Sequence[Mapping[str, Any]],
    batch_size: int,
    model: Any = None,
    run: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """What a run of some options answers to lines."""
    items = read_items(b"\n".join(json.dumps(line).encode() for line in lines))
    answerer = Answerer(model or combination(), Letters(), {"max_new_tokens": 6, **(run or {})}, **options)
    return [a for start in range(0, len(items), batch_size) for a in answerer(items[start : start + batch_size])]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
