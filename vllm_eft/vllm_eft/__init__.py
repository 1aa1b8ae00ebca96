"""Emulated fine-tuning inside vLLM: a combination that hf_eft saved is one model there. vLLM calls `register` in every process."""

from __future__ import annotations

from ._version import __version__

__all__ = ["__version__", "register"]


def register() -> None:
    """Tell vLLM what a combination is. Engines of other models are left as they are."""
    from .releases import register_architecture

    register_architecture()
