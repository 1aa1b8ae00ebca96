"""Members from folders or Hub ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def load(
    where: str | Mapping[str, str],
    *,
    combination: Any = None,
    dtype: str = "auto",
    device: str | None = None,
    allow_references: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Any, dict[str, Any]]:
    """The model and its members' tokenizers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..modeling_eft import EFTForCausalLM

    if isinstance(where, str):
        raise ValueError(f"Saved combinations are not read yet: {where}")
    models, tokenizers = {}, {}
    for name, place in where.items():
        progress(f"Loading the {name} model: {place}")
        try:
            tokenizers[name] = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
            loaded = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"the {name} model cannot be loaded from {place}: {error}") from error
        models[name] = loaded.to(device)
    base, reference = models.pop("base", None), models.pop("reference", None)
    tuned = models.get("tuned") if set(models) == {"tuned"} else models
    model = EFTForCausalLM.from_models(base, tuned=tuned, reference=reference, combination=combination, tokenizers=tokenizers)
    return model, tokenizers
