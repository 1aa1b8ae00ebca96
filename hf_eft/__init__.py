"""Emulated fine-tuning inside transformers' `generate`: exact under every decoding strategy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .configuration_eft import EFTConfig
from .members.cache import EFTCache
from .programs.moved import OldNames
from .recipe.combination import Combination
from .recipe.phases import Phase
from .recipe.rules.confidence import Confidence, Entropy
from .recipe.rules.divergence import Divergence
from .recipe.rules.gate import Gate
from .recipe.rules.kl import KLConstrained
from .recipe.rules.rule import Rule
from .recipe.truncation import Truncation

if TYPE_CHECKING:
    from .logits_process import EFTLogitsProcessor
    from .modeling_eft import EFTForCausalLM

__all__ = [
    "Combination",
    "EFTCache",
    "EFTConfig",
    "EFTForCausalLM",
    "EFTLogitsProcessor",
    "Phase",
    "Truncation",
    "Rule",
    "KLConstrained",
    "Confidence",
    "Entropy",
    "Divergence",
    "Gate",
    "__version__",
]


def _register_model() -> None:
    """
    Have a configuration's model be found: with `AutoModelForCausalLM`, with which its module registers it, or by its name among
    transformers' own, as `transformers serve` looks it up. Called when a configuration is made, so that importing costs nothing.
    """
    before = sys.modules["transformers"]  # a lazy module, which some of its own parts make anew when they are imported

    from .modeling_eft import EFTForCausalLM

    server = sys.modules.get("transformers.cli.serving.model_manager")  # which may hold an older one
    for module in (before, sys.modules["transformers"], getattr(server, "transformers", before)):
        setattr(module, EFTForCausalLM.__name__, EFTForCausalLM)


sys.meta_path.append(OldNames())
EFTConfig.register_model = staticmethod(_register_model)  # type: ignore[method-assign]

# These need transformers' modeling code, which takes seconds to import and which an importer may never use.
_LAZY = {"EFTForCausalLM": ".modeling_eft", "EFTLogitsProcessor": ".logits_process"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
