"""Emulated fine-tuning inside transformers' `generate`: exact under every decoding strategy."""

from transformers import AutoConfig, AutoModelForCausalLM

from .cache import EFTCache
from .combination import Combination, Truncation
from .configuration_eft import EFTConfig
from .logits_process import EFTLogitsProcessor
from .modeling_eft import EFTForCausalLM

from ._version import __version__

__all__ = [
    "Combination",
    "EFTCache",
    "EFTConfig",
    "EFTForCausalLM",
    "EFTLogitsProcessor",
    "Truncation",
    "__version__",
]

AutoConfig.register(EFTConfig.model_type, EFTConfig, exist_ok=True)
AutoModelForCausalLM.register(EFTConfig, EFTForCausalLM, exist_ok=True)
