"""One relay and one official executor for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.official.site import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("official"))
    try:
        yield made
    finally:
        made.close()
