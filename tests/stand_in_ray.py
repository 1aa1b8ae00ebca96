"""What a run asks of Ray, done in this process, one thing after the other: the flow of a run without its machines."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest


class Rows:
    """A data set of Ray, whose steps are done as it is iterated over."""

    def __init__(self, rows: list[dict[str, Any]], steps: tuple[Callable[[Any], dict[str, list[Any]]], ...] = ()) -> None:
        self.rows, self.steps = rows, steps

    def map_batches(self, step: Any, *, batch_size: int, batch_format: str, **options: Any) -> Rows:
        assert (batch_size, batch_format) == (1, "pyarrow")
        if isinstance(step, type):  # an actor
            step = step(*options["fn_constructor_args"])
        return Rows(self.rows, (*self.steps, step))

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            found: Any = [row]
            for step in self.steps:
                found = pa.Table.from_pydict(step(pa.Table.from_pylist(found))).to_pylist()
            yield from found


class RayError(Exception):
    pass


def stand_in(monkeypatch: pytest.MonkeyPatch, gpus: float = 0.0) -> list[tuple[Any, dict[str, Any]]]:
    """Put it where `import ray` finds it. Returns how it is started, as it happens."""
    started: list[tuple[Any, dict[str, Any]]] = []
    ray, data = types.ModuleType("ray"), types.ModuleType("ray.data")
    context = types.SimpleNamespace()
    ray.__dict__.update(
        init=lambda address, **options: started.append((address, options)),
        shutdown=lambda: started.append(("shutdown", {})),
        cluster_resources=lambda: {"GPU": gpus} if gpus else {},
        exceptions=types.SimpleNamespace(RayError=RayError),
        data=data,
    )
    data.__dict__.update(
        from_items=lambda rows, override_num_blocks: Rows(rows),
        DataContext=types.SimpleNamespace(get_current=lambda: context),
        ActorPoolStrategy=dict,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", data)
    return started
