"""Models over one set of weights share modules, but not whether they are being trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def keep_apart(learner: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Have the modules that a frozen model shares with the learner (dropout among them) be in evaluation mode while it runs."""
    taught = {id(module) for module in learner.modules()}
    for model in frozen:
        shared = [module for module in model.modules() if id(module) in taught]
        if shared:
            _Rest(shared).around(model)


class _Rest:
    """Evaluation mode for some modules, from the beginning of a model's call to its end."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._before: list[bool] = []

    def around(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end, always_call=True)

    def _begin(self, *_: Any) -> None:
        self._before = [module.training for module in self._modules]
        for module in self._modules:
            module.training = False

    def _end(self, *_: Any) -> None:
        for module, training in zip(self._modules, self._before, strict=True):
            module.training = training
