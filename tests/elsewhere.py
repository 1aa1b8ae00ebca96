"""Members on another device than the rest, as far as the package can tell: two places on one CPU, which are at work at the same time."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Collection, Iterator
from typing import Any

import pytest
import torch
from random_cases import double

from hf_eft import EFTForCausalLM
from hf_eft.decoding.speculative import ahead
from hf_eft.members import beside

_NEAR: dict[tuple[str, int], Any] = {}


def near(family: str, seed: int) -> Any:
    """A model that mostly says what `double(family, 0)` says, of which it is a disturbed copy; each is made once."""
    if (family, seed) not in _NEAR:
        model = copy.deepcopy(double(family, 0))
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=noise).to(weight.dtype) * weight.std(correction=0) * 0.03)
        _NEAR[family, seed] = model
    return _NEAR[family, seed]


def agreeing(family: str = "llama", **options: Any) -> EFTForCausalLM:
    """A combination whose tuned member agrees with it at most tokens."""
    return EFTForCausalLM.from_models(
        double(family, 0), tuned=near(family, 1), reference=near(family, 2), **{"alpha": 0.3, **options}
    )


def put_elsewhere(patch: pytest.MonkeyPatch, *models: Any) -> None:
    """Have these models be on a device of their own, that is waited for."""

    def place_of(model: Any) -> beside.Place:
        return beside.Place(torch.device("cpu"), any(model is each for each in models))

    for module in (beside, ahead):
        patch.setattr(module, "place_of", place_of)


class Trace:
    """What models did, and when: begins and ends of their forwards, in the order in which they came."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def add(self, name: str, what: str) -> None:
        with self._lock:
            self.events.append((name, what))

    @contextlib.contextmanager
    def of(self, models: dict[str, Any]) -> Iterator[Trace]:
        """Note the forwards of these models."""
        handles = []
        for name, model in models.items():
            handles.append(model.register_forward_pre_hook(lambda *_, name=name: self.add(name, "begins")))
            handles.append(model.register_forward_hook(lambda *_, name=name: self.add(name, "ends")))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def during(self, name: str) -> list[Collection[str]]:
        """By forward of a model: whose others began before it had ended."""
        found: list[list[str]] = []
        running = False
        for who, what in self.events:
            if who == name:
                running = what == "begins"
                found += [[]] if running else []
            elif running and what == "begins":
                found[-1].append(who)
        return [set(each) for each in found]
