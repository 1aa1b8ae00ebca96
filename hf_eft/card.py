"""The model card of a combination."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .modeling_eft import EFTForCausalLM


def model_card(model: EFTForCausalLM, *, sources: Mapping[str, str] | None = None, repo_id: str | None = None) -> str:
    """The text of `README.md`."""
    return f"---\nlibrary_name: transformers\n---\n\n# {repo_id or 'A combination'}\n\n`{model.combination}`\n"
