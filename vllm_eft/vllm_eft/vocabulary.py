"""Which tokens may be generated: those that all members have, as hf_eft decides it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .trust import MEMBERS


def known_tokens(config: Any, folder: Path, size: int) -> torch.Tensor | None:
    """
    The ids that every tokenizer knows of the members whose tokenizers decide, as booleans; nothing if none does. Tokenizers that say the
    same share the folder's own.
    """
    if not config.tokenizer_members:
        return None
    places = {folder / MEMBERS / name for name in config.tokenizer_members}
    places = {place if (place / "tokenizer_config.json").is_file() else folder for place in places}
    from transformers import AutoTokenizer

    ids = [set(AutoTokenizer.from_pretrained(place, local_files_only=True).get_vocab().values()) for place in sorted(places)]
    known = torch.zeros(size, dtype=torch.bool)
    known[[each for each in set.intersection(*ids) if each < size]] = True
    return known
