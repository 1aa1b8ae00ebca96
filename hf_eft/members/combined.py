"""What those who are handed a model of several members know of it; [`EFTForCausalLM`] is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from ..configuration_eft import EFTConfig
from ..recipe.combination import Combination
from .members import Members


class Combined(Protocol):
    """A model that reads with several members and predicts by a recipe. Whoever saves, describes or batches it stands below its class."""

    config: EFTConfig
    generation_config: Any
    training: bool
    _members: Members
    _beneath: Any  # what members in units or bytes are views of

    @property
    def vocabulary(self) -> str | None: ...

    @property
    def members(self) -> Mapping[str, PreTrainedModel]: ...

    @property
    def combination(self) -> Combination: ...

    @property
    def sources(self) -> dict[str, tuple[str, str | None]]: ...

    @property
    def tokenizers(self) -> dict[str, Any]: ...

    @property
    def _spellers(self) -> Mapping[str, Any]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


class Generates(Combined, Protocol):
    """Such a model with what transformers' `GenerationMixin` gives it."""

    _cached_continuous_batching_manager: Any

    def _prepare_generation_config(self, generation_config: Any, **options: Any) -> Any: ...

    def _get_logits_processor(self, generation_config: Any, **options: Any) -> Any: ...
