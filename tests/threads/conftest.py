"""One host with a real codex for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.threads.world import World, living


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with living(tmp_path_factory.mktemp("world")) as made:
        yield made
