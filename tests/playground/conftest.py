"""Playgrounds that the tests of this folder share: a process that takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serve_playground import Served


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    with Served("three", "several", "endless", "pictures") as served:
        yield served
